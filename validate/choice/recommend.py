"""Name the smallest quantization that passes some gates, and say why not the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..report.compose import judged
from ..report.files import load_report
from ..report.gates import Gate
from .candidates import Candidate, Candidates


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """Say of a candidate whether it may be chosen; ``reasons`` why it may not."""

    name: str
    file: str
    bytes: int
    latency_ms: float | None
    open: bool = False
    reasons: tuple[str, ...] = ()


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the choice, None where nothing passes, and all that were considered, smallest first.

    ``open`` ones have a gate that their samples do not decide.
    """

    model: str
    chosen: str | None
    file: str | None
    considered: tuple[Considered, ...]


def recommend(
    candidates: Candidates, gates: Sequence[Gate], target: str | None = None
) -> Recommendation:
    """Return the smallest candidate that passes all gates, of equal ones the fastest.

    `target` asks for an engine that was built for it: `cpu`, or a compute capability such as sm89.

    Raises:
        WorkspaceError: a report is missing or damaged.
    """
    order = sorted(candidates.found, key=_smallest_first)
    considered = tuple(_considered(each, gates, target) for each in order)
    chosen = next((each for each in considered if not each.reasons), None)
    return Recommendation(
        model=order[0].model,
        chosen=chosen.name if chosen else None,
        file=chosen.file if chosen else None,
        considered=considered,
    )


def _smallest_first(candidate: Candidate) -> tuple[int, float]:
    time = candidate.latency_ms
    return candidate.bytes, math.inf if time is None else time


def _considered(candidate: Candidate, gates: Sequence[Gate], target: str | None) -> Considered:
    results = judged(load_report(Path(candidate.file)), gates).gates
    reasons = [each.reason or each.expression for each in results if not each.passed]
    undecided = bool(reasons) and all(each.verdict != "failed" for each in results)
    if target is not None and target not in candidate.targets:
        built = ", ".join(candidate.targets) or "nothing"
        reasons.append(f"has no engine for {target}, but for {built}")
        undecided = False
    return Considered(
        name=candidate.name,
        file=candidate.file,
        bytes=candidate.bytes,
        latency_ms=candidate.latency_ms,
        open=undecided,
        reasons=tuple(reasons),
    )
