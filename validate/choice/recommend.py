"""Name the smallest quantization that passes some gates, and say why not the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..intervals.speeds import noun_of
from ..report.compose import judged
from ..report.files import load_report
from ..report.gates import Gate, GateResult, metric_of
from ..report.schema import Report
from ..report.spread import INCONCLUSIVE
from .candidates import Candidate, Candidates, require_measured

# A generator makes as many images as it is asked; all others are fed what a folder or file holds.
_SAMPLES = {True: "--samples", False: "more held-out --images or --feeds, at least"}


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """Say of a candidate whether it may be chosen; ``reasons`` why it may not.

    ``gated`` has what the gates read, by metric. ``remedy`` is the option of `validate` that would
    decide an ``open`` one.
    """

    name: str
    file: str
    bytes: int
    latency_ms: float | None
    speedup: float | None = None
    speed: str | None = None
    busy: str = ""
    gated: dict[str, float] = {}
    open: bool = False
    remedy: str = ""
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
        RecipeError: no report has the metric of a gate.
    """
    require_measured(candidates, gates)
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
    if candidate.speedup is None:
        return candidate.bytes, math.inf
    return candidate.bytes, 1.0 if candidate.speed == INCONCLUSIVE else 1 / candidate.speedup


def _considered(candidate: Candidate, gates: Sequence[Gate], target: str | None) -> Considered:
    report = load_report(Path(candidate.file))
    results = judged(report, gates).gates
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
        speedup=candidate.speedup,
        speed=candidate.speed,
        busy=candidate.busy,
        gated={metric_of(r.expression): r.value for r in results if r.value is not None},
        open=undecided,
        remedy=_remedy(report, results) if undecided else "",
        reasons=tuple(reasons),
    )


def _remedy(report: Report, results: Sequence[GateResult]) -> str:
    """Return the options of `validate` that give open gates enough samples."""
    counts: dict[str, int | None] = {}
    for each in results:
        if each.verdict == INCONCLUSIVE:
            noun = noun_of(metric_of(each.expression))
            option = f"--{noun}" if noun != "samples" else _SAMPLES[bool(report.generation)]
            needed = None if each.more is None or each.n is None else each.n + each.more
            counts[option] = max(counts.get(option) or 0, needed or 0) or None
    return " ".join(f"{option} {'N' if n is None else n}" for option, n in counts.items())
