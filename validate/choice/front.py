"""Find the candidates that no other one beats in quality, bytes and time at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..compare.rules import Rule
from .candidates import Candidate

NOISE = 1.05  # between medians of equal engines on a machine that does other things beside


def losses(candidate: Candidate, rule: Rule, *, timed: bool) -> tuple[float, ...]:
    """Return what is to be small: the loss of quality, the bytes and, where `timed`, the time.

    What was not measured counts as infinite: it beats nothing.
    """
    quality = candidate.quality
    if quality is None or math.isnan(quality):
        lost = math.inf
    else:
        lost = quality if rule.better == "lower" else -quality
    time = candidate.latency_ms if candidate.latency_ms is not None else math.inf
    return (lost, float(candidate.bytes), time) if timed else (lost, float(candidate.bytes))


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return whether `a` is at least as small everywhere and smaller somewhere.

    Of times, the last of three, a few per cent are chance: they count as equal.
    """
    pairs = list(zip(a, b, strict=True))
    exact, timed = pairs[:2], pairs[2:]
    no_larger = all(x <= y for x, y in exact) and all(x <= NOISE * y for x, y in timed)
    smaller = any(x < y for x, y in exact) or any(NOISE * x < y for x, y in timed)
    return no_larger and smaller


def pareto_front(candidates: Sequence[Candidate], rule: Rule) -> list[Candidate]:
    """Return the candidates that none dominates, in their order.

    Times count only if all were measured: they are of this machine, bytes of any.
    """
    timed = all(each.latency_ms is not None for each in candidates)
    found = [losses(each, rule, timed=timed) for each in candidates]
    return [
        each
        for each, own in zip(candidates, found, strict=True)
        if own[0] < math.inf and not any(dominates(other, own) for other in found)
    ]
