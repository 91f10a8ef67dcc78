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
from .front import pareto_front

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
        key_figures=_key_figures(candidates, front),
        charts=_charts(candidates, ordered, kept),
        tables=(_table(candidates, ordered, kept, beside),),
        notes=(
            "One quantization beats another that is at least as good in quality, size and time, "
            "and better in one of them. Times are of the machine that validated, and count only "
            "where all were measured.",
            "Differences of quality within the intervals, and small ones of time, may "
            "be chance: times within 5 % count as equal here, and `arvg-trt compare` decides by "
            "paired intervals.",
        ),
    )


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
    timed = [each for each in front if each.latency_ms is not None]
    if timed:
        fastest = min(timed, key=lambda each: each.latency_ms or math.inf)
        value = metric_text("latency_ms", fastest.latency_ms)
        figures.append(KeyFigure(label="Fastest", value=value, detail=fastest.name))
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
            *("Size", "Latency", "Engines", "Gates", "Version"),
        ),
        rows=tuple(rows),
        caption="Smallest first; latency is the engine's median for one call.",
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
        ", ".join(each.targets) or "-",
        gates,
        each.version or "-",
    )


def _link(each: Candidate, beside: Path) -> Cell:
    if not each.file:
        return each.name
    page = Path(each.file).with_name(REPORT_PAGE)
    if not page.is_file():
        return each.name
    address = Path(os.path.relpath(page, beside.resolve())).as_posix()
    return Link(each.name, quote(address))
