"""Find the candidates that no other one beats in quality, bytes and time at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..compare.rules import Rule
from .candidates import Candidate

NOISE = 1.05  # between medians of equal engines on a machine that does other things beside


@dataclass(frozen=True, slots=True)
class Costs:
    """Hold what is to be small: the loss of quality, the bytes, and the time as a share of FP32's.

    ``time`` is None where times do not count. One that is not ``sure`` may as well be FP32's.
    """

    loss: float
    bytes: int
    time: float | None = None
    sure: bool = False


def costs(candidate: Candidate, rule: Rule, *, timed: bool) -> Costs:
    """Return what is to be small of a candidate; a quality without a figure beats nothing.

    Reports are timed minutes apart, each beside FP32: the ratio of both is what a machine that does
    other things changes least. A speed that is inconclusive counts as FP32's.
    """
    quality = candidate.quality
    if quality is None or math.isnan(quality):
        loss = math.inf
    else:
        loss = quality if rule.better == "lower" else -quality
    if not timed or not candidate.speedup:
        return Costs(loss, candidate.bytes)
    sure = candidate.speed in ("faster", "slower")
    return Costs(loss, candidate.bytes, 1 / candidate.speedup if sure else 1.0, sure)


def dominates(a: Costs, b: Costs) -> bool:
    """Return whether `a` is at least as small everywhere and smaller somewhere.

    Of times a few per cent are chance: they count as equal. A time that is not sure beats none, nor
    is it beaten for itself alone.
    """
    no_larger = a.loss <= b.loss and a.bytes <= b.bytes
    smaller = a.loss < b.loss or a.bytes < b.bytes
    if a.time is not None and b.time is not None:
        no_larger = no_larger and a.time <= NOISE * b.time
        smaller = smaller or (a.sure and b.sure and NOISE * a.time < b.time)
    return no_larger and smaller


def times_count(candidates: Sequence[Candidate]) -> bool:
    """Return whether all candidates were timed, on one processor and in one setting."""
    timed = all(each.speedup for each in candidates)
    return timed and len({each.timed_on for each in candidates}) == 1


def pareto_front(candidates: Sequence[Candidate], rule: Rule) -> list[Candidate]:
    """Return the candidates that none dominates, in their order.

    Times count only if all were measured alike: they are of this machine, bytes of any.
    """
    timed = times_count(candidates)
    found = [costs(each, rule, timed=timed) for each in candidates]
    return [
        each
        for each, own in zip(candidates, found, strict=True)
        if own.loss < math.inf and not any(dominates(other, own) for other in found)
    ]
