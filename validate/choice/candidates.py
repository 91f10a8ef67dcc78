"""Read quantizations of a model as candidates: what each loses, takes and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ...errors import RecipeError, WorkspaceError, nearest
from ..compare.rules import RULES, Rule
from ..intervals.figure import COUNTED, plain
from ..intervals.speeds import SPEEDS
from ..report.files import load_report
from ..report.gates import Gate, Verdict
from ..report.schema import REPORT_FILE, Report, metrics
from ..report.spread import figure

# The figure that says how good a model is, by kind: of pictures, of logits, of noise, of outputs.
QUALITY = ("psnr_drop", "kl", "noise_sqnr_db", "output_sqnr_db")
FP32 = "FP32"
Sized = Literal["download", "on disk", "packed weights"]
LEVEL = 0.95
_RULES = {rule.metric: rule for rule in RULES}


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what decides between quantizations; `file` is the report that it is from.

    ``low`` and ``high`` are the ends of the quality's 95 % interval, None where it has none.
    ``bytes`` are what a device downloads, or of a report without that figure what runs;
    ``latency_ms`` is the engine's median, ``speedup`` its speed against FP32, timed in turn with
    it, ``speed`` what that says, ``timed_on`` the processor and setting, ``busy`` what others did
    meanwhile. ``targets`` are what engines were built for.
    """

    name: str
    model: str
    file: str
    version: str
    quality: float | None
    low: float | None = None
    high: float | None = None
    bytes: int
    latency_ms: float | None = None
    speedup: float | None = None
    speed: Literal["faster", "slower", "inconclusive"] | None = None
    timed_on: str = ""
    busy: str = ""
    targets: tuple[str, ...] = ()
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hold the candidates of one model, and the metric that their quality is.

    `sized` says what their bytes are of; `reference` is FP32, where its bytes and time are known.
    """

    rule: Rule
    sized: Sized
    found: tuple[Candidate, ...]
    reference: Candidate | None


def read_candidates(files: Sequence[Path], quality: str | None = None) -> Candidates:
    """Read reports of one model as candidates.

    `quality` names the metric; without, the first of `QUALITY` that every report has.

    Raises:
        RecipeError: reports of several models, or a metric that not all of them have.
        WorkspaceError: a report is missing or damaged.
    """
    reports = {file: load_report(file) for file in files}
    models = sorted({report.model for report in reports.values()})
    if len(models) > 1:
        raise RecipeError(
            f"reports of several models: {', '.join(models)}",
            do="compare quantizations of one model at a time",
        )
    rule = _rule(list(reports.values()), quality)
    # Bytes are compared with their like: what runs takes more than a download of the same model.
    sized: Sized = "packed weights"  # all that reports of the oldest version have
    if all(_download(report) is not None for report in reports.values()):
        sized = "download"
    elif all(report.sizes.runs for report in reports.values()):
        sized = "on disk"
    found = tuple(_candidate(file, report, rule, sized) for file, report in reports.items())
    first = next(iter(reports.values()))
    return Candidates(rule, sized, found, _reference(first, rule, sized))


def _rule(reports: Sequence[Report], quality: str | None) -> Rule:
    if quality is not None and quality not in _RULES:
        raise RecipeError(
            f"there is no metric {quality!r} to choose by", do=f"use {nearest(quality, _RULES)}"
        )
    measured = [metrics(report) for report in reports]
    shared = [name for name in _RULES if all(values[name] is not None for values in measured)]
    names = [quality] if quality is not None else list(QUALITY)
    for name in names:
        if name in shared:
            return _RULES[name]
    what = f"{quality} was" if quality else f"none of {', '.join(QUALITY)} was"
    raise RecipeError(
        f"{what} not measured in every report" if quality else f"{what} measured in every report",
        do=f"validate them alike, or give --quality one that all have: {_named(shared)}",
    )


def _named(metrics: Sequence[str]) -> str:
    """Return the metrics that a quality may be, as a message lists them: no sizes nor times."""
    return ", ".join(name for name in metrics if name not in (*COUNTED, *SPEEDS)) or "there is none"


def require_measured(candidates: Candidates, gates: Sequence[Gate]) -> None:
    """Raise RecipeError for a gate whose metric no report has; names those that there are."""
    measured = [metrics(load_report(Path(each.file))) for each in candidates.found]
    for gate in gates:
        unmeasured = all(values[gate.metric] is None for values in measured)
        if unmeasured and plain(gate.metric) not in SPEEDS:
            shared = [name for name in _RULES if any(v[name] is not None for v in measured)]
            raise RecipeError(
                f"gate {str(gate)!r}: no report has {gate.metric}",
                do=f"use {_named(shared)}",
            )


def _download(report: Report) -> int | None:
    found = getattr(report.sizes, "download", None)
    return None if found is None else int(found.bytes)


def _candidate(file: Path, report: Report, rule: Rule, sized: Sized) -> Candidate:
    values, sizes = metrics(report), report.sizes
    interval = figure(report, rule.metric, LEVEL)
    count = sizes.packed_weight_bytes
    if sized == "on disk" and sizes.runs:
        count = sizes.running_bytes[sizes.runs]
    elif sized == "download":
        count = _download(report) or count
    total = report.latency.get("total")
    targets = (target for row in report.engines for target in row.target.split())
    return Candidate(
        name=report.name,
        model=report.model,
        file=str(file),
        version=report.versions.get("arvg-trt", ""),
        quality=values[rule.metric],
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        bytes=count,
        latency_ms=values["latency_ms"],
        speedup=values["speedup"],
        speed=total.speed.verdict if total else None,
        timed_on=_timed_on(report),
        busy=report.busy if total else "",
        targets=tuple(dict.fromkeys(targets)),
        verdict=report.verdict,
    )


def _timed_on(report: Report) -> str:
    """Return the processor, the engine's device and the setting of what was timed, if it was."""
    total = report.latency.get("total")
    if total is None:
        return ""
    shape = "x".join(map(str, total.shape))
    # Engines of several back ends on one device compare; the place names the back end behind it.
    devices = ", ".join(dict.fromkeys(p.partition(",")[0] for p in report.ran.values()))
    setting = f"threads {total.threads}, batch {total.batch}, {shape}"
    return "; ".join(text for text in (report.cpu.model, devices, setting) if text)


def _reference(report: Report, rule: Rule, sized: Sized) -> Candidate | None:
    """Return FP32 as a candidate: it loses nothing, and takes the most."""
    sizes, total = report.sizes, report.latency.get("total")
    count = sizes.fp32_weight_bytes if sized == "packed weights" else sizes.fp32_running_bytes
    if count is None:
        return None
    return Candidate(
        name=FP32,
        model=report.model,
        file="",
        version="",
        quality=0.0 if rule.better == "lower" else math.inf,
        bytes=count,
        latency_ms=total.fp32.p50_ms if total else None,
        speedup=1.0 if total else None,
    )


def report_files(folders: Sequence[Path]) -> list[Path]:
    """Return the reports in some folders and below, or those that are named, in order of paths.

    Raises:
        WorkspaceError: a folder is not there.
        RecipeError: there is no report.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise WorkspaceError("no such file or folder", where=str(folder), do="name a workspace")
        below = [folder] if folder.is_file() else sorted(folder.rglob(REPORT_FILE))
        found |= dict.fromkeys(below)
    if not found:
        raise RecipeError(
            f"no {REPORT_FILE} there",
            where=", ".join(map(str, folders)),
            do="run `arvg-trt validate`, or `arvg-trt sweep` with the recipes to choose among",
        )
    return list(found)
