"""Show candidates and their Pareto front as a page."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import quote

from ..formats import metric_text, size
from ..report.charts.chart import Chart, Series
from ..report.page import Badge, Cell, KeyFigure, Link, Page, Table
from .candidates import Candidate, Candidates
from .front import pareto_front, times_count
from .recommend import Considered

PAGE, REPORT_PAGE = "sweep.html", "report.html"
SIZED = {
    "download": "what a device downloads",
    "on disk": "what runs, on disk",
    "packed weights": "the packed weights",
}
BADGES = {"passed": "good", "failed": "bad", "inconclusive": "warn"}


def sweep_page(candidates: Candidates, beside: Path) -> Page:
    """Return the page of a choice; links lead to the reports from files in `beside`."""
    front = pareto_front(candidates.found, candidates.rule)
    ordered = sorted(candidates.found, key=lambda each: each.bytes)
    kept = {each.file for each in front}
    count = len(candidates.found)
    return Page(
        title=f"{ordered[0].model}: {count} quantizations",
        subtitle=f"quality is {candidates.rule.title}; size is {_sized(candidates)}",
        verdict=Badge(f"{len(front)} of {count} are beaten by none of the others", "plain"),
        warnings=busy_lines(candidates.found),
        key_figures=_key_figures(candidates, front),
        charts=_charts(candidates, ordered, kept),
        tables=(_table(candidates, ordered, kept, beside),),
        notes=(
            "One quantization beats another that is at least as good in quality, size and time, "
            "and better in one of them. Of time that is the speed against FP32, which each report "
            "timed in turn with its engine: reports are made minutes apart, and their milliseconds "
            f"alone would compare the machine's moments. {_times(candidates)}",
            "A speed that is inconclusive counts as FP32's and beats none. Differences of quality "
            "within the intervals, and small ones of speed, may be chance: speeds within 5 % count "
            "as equal here, and `arvg-trt compare` decides by paired intervals.",
        ),
    )


def busy_lines(found: Sequence[Candidate]) -> tuple[str, ...]:
    """Return which candidates were timed on a busy machine, and what others did there."""
    return tuple(
        f"{each.name}: timed on a busy machine, {each.busy}" for each in found if each.busy
    )


def candidate_line(candidates: Candidates, each: Candidate, *, beaten: bool) -> str:
    """Return a candidate's figures in a line: its quality, size, and speed as far as it is sure."""
    parts = [f"{candidates.rule.title} {quality_text(candidates.rule.metric, each)}"]
    parts += [size(each.bytes), *filter(None, [speed_text(each)])]
    return f"{each.name}: {', '.join(parts)}; beaten by {'another' if beaten else 'none'}"


def quality_text(metric: str, each: Candidate) -> str:
    """Return a candidate's quality, with its interval where it has one."""
    value = metric_text(metric, each.quality)
    if each.low is None or each.high is None:
        return value
    return f"{value} ({metric_text(metric, each.low)} to {metric_text(metric, each.high)})"


def speed_text(each: Candidate | Considered) -> str:
    """Return a candidate's time and its speed against FP32; "" where it was not timed."""
    if each.latency_ms is None or each.speedup is None:
        return ""
    words = "inconclusive" if each.speed == "inconclusive" else f"{each.speed} than FP32"
    busy = ", on a busy machine" if each.busy else ""
    ratio = metric_text("speedup", each.speedup)
    return f"{metric_text('latency_ms', each.latency_ms)} ({ratio}, {words}{busy})"


def _times(candidates: Candidates) -> str:
    if times_count(candidates.found):
        return "Speeds count here, for all were timed on one machine in one setting."
    return "Speeds do not count here: not all were timed, or not on one machine in one setting."


def _sized(candidates: Candidates) -> str:
    return SIZED[candidates.sized]


def _key_figures(candidates: Candidates, front: Sequence[Candidate]) -> tuple[KeyFigure, ...]:
    if not front:
        return ()
    best = min(front, key=lambda each: _loss(candidates, each))
    smallest = min(front, key=lambda each: each.bytes)
    figures = [
        KeyFigure(
            label="Best quality",
            value=metric_text(candidates.rule.metric, best.quality),
            detail=best.name,
        ),
        KeyFigure(label="Smallest", value=size(smallest.bytes), detail=smallest.name),
    ]
    timed = [each for each in front if each.speed in ("faster", "slower")]
    if timed and times_count(candidates.found):
        fastest = max(timed, key=lambda each: each.speedup or 0.0)
        value = metric_text("speedup", fastest.speedup)
        busy = ", on a busy machine" if fastest.busy else ""
        figures.append(
            KeyFigure(
                label="Fastest",
                value=value,
                detail=f"{fastest.name}, against FP32{busy}",
                level="warn" if busy else "plain",
            )
        )
    return tuple(figures)


def _loss(candidates: Candidates, candidate: Candidate) -> float:
    quality = candidate.quality if candidate.quality is not None else math.nan
    return quality if candidates.rule.better == "lower" else -quality


def _charts(
    candidates: Candidates, ordered: Sequence[Candidate], kept: Collection[str]
) -> tuple[Chart, ...]:
    """Return quality over the candidates, smallest first; none where nothing is finite."""
    finite = [each.quality is not None and math.isfinite(each.quality) for each in ordered]
    if not any(finite):
        return ()

    def values(*, on_front: bool) -> tuple[float | None, ...]:
        return tuple(each.quality if (each.file in kept) == on_front else None for each in ordered)

    return (
        Chart(
            title=f"{candidates.rule.title}, smallest first",
            caption="Bytes grow to the right.",
            unit="",
            names=tuple(each.name for each in ordered),
            series=(
                Series("beaten by none", values(on_front=True), "accent"),
                Series("beaten by another", values(on_front=False), "soft"),
            ),
        ),
    )


def _table(
    candidates: Candidates, ordered: Sequence[Candidate], kept: Collection[str], beside: Path
) -> Table:
    rows = [_row(candidates, each, each.file in kept, beside) for each in ordered]
    if candidates.reference is not None:
        rows.append(_row(candidates, candidates.reference, None, beside))
    return Table(
        title="Quantizations",
        header=(
            *("Quantization", "Beaten by", candidates.rule.title, "95 %"),
            *("Size", "Latency", "Speed", "Engines", "Gates", "Version"),
        ),
        rows=tuple(rows),
        caption="Smallest first; latency is the engine's median for one call, speed that of FP32, "
        "timed in turn, over it.",
    )


def _row(
    candidates: Candidates, each: Candidate, on_front: bool | None, beside: Path
) -> tuple[Cell, ...]:
    metric = candidates.rule.metric
    ends = (metric_text(metric, end) for end in (each.low, each.high))
    interval = " to ".join(ends) if each.low is not None else "-"
    beaten: Cell = Badge("none", "good") if on_front else "another"
    gates: Cell = Badge(each.verdict, BADGES[each.verdict]) if each.verdict else "-"  # type: ignore[arg-type]
    return (
        _link(each, beside),
        "reference" if on_front is None else beaten,
        metric_text(metric, each.quality),
        interval,
        size(each.bytes),
        metric_text("latency_ms", each.latency_ms) if each.latency_ms is not None else "-",
        _speed(each),
        ", ".join(each.targets) or "-",
        gates,
        each.version or "-",
    )


def _speed(each: Candidate) -> Cell:
    if each.speedup is None:
        return "-"
    doubts = ["inconclusive"] * (each.speed == "inconclusive") + ["busy"] * bool(each.busy)
    text = ", ".join([metric_text("speedup", each.speedup), *doubts])
    return Badge(text, "warn") if doubts else text


def _link(each: Candidate, beside: Path) -> Cell:
    if not each.file:
        return each.name
    page = Path(each.file).with_name(REPORT_PAGE)
    if not page.is_file():
        return each.name
    address = Path(os.path.relpath(page, beside.resolve())).as_posix()
    return Link(each.name, quote(address))
