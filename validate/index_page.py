"""Show an index of reports and bundles as a page."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from .facts import ValidationFacts, speed_text, summary
from .formats import size
from .index import IndexedBundle, IndexedReport, ReportIndex
from .report.page import Badge, Cell, KeyFigure, Link, Page, Table
from .report.spread import INCONCLUSIVE

SHORT = 12  # digits of a digest or a key; `--json` has all of them
NOT_READ, NOT_MEASURED = "cannot be read", "not measured"


def index_page(index: ReportIndex) -> Page:
    """Return the page that shows an index."""
    reports = [report for report in index.reports if report.problem is None]
    bundles = [bundle for bundle in index.bundles if bundle.problem is None]
    packed = f" and {_count(len(bundles), 'bundle')}" if bundles else ""
    return Page(
        title="Quantized models",
        subtitle=f"{_count(len(reports), 'report')}{packed}",
        verdict=_verdict(index),
        key_figures=_key_figures(reports, bundles),
        tables=tuple(
            table
            for table in (_report_table(reports), _bundle_table(bundles), _unread_table(index))
            if table.rows
        ),
    )


def _verdict(index: ReportIndex) -> Badge:
    """Return the worst that is known of all reports, then what could not be read."""
    failed = sum(report.verdict == "failed" for report in index.reports)
    undecided = sum(report.verdict == INCONCLUSIVE for report in index.reports)
    unread = len(_unread(index))
    gateless = sum(report.passed is None for report in index.reports)
    if failed:
        every = len(index.reports)
        text = "The report" if every == 1 else f"{failed} of {every} reports"
        return Badge(f"{text} failed a gate", "bad")
    if undecided:
        return Badge(f"{_count(undecided, 'report')} with an {INCONCLUSIVE} gate", "warn")
    if unread:
        return Badge(f"{_count(unread, 'file')} {NOT_READ}", "warn")
    if gateless == len(index.reports):
        return Badge("No gates were set", "plain")
    rest = f", {gateless} without gates" if gateless else ""
    passed = _count(len(index.reports) - gateless, "report")
    return Badge(f"Passed: all gates of {passed}{rest}", "good")


def _key_figures(
    reports: Sequence[IndexedReport], bundles: Sequence[IndexedBundle]
) -> tuple[KeyFigure, ...]:
    gates, failed = sum(r.gates for r in reports), sum(len(r.failed) for r in reports)
    undecided = sum(len(r.undecided) for r in reports)
    shown = (f"{_accuracy_text(r)} {_speed_text(r)} {_gates_text(r)}" for r in reports)
    doubtful = sum(INCONCLUSIVE in text for text in shown)
    figures = []
    if gates:
        figures.append(
            KeyFigure(
                label="Gates passed",
                value=f"{gates - failed - undecided} of {gates}",
                detail=f"in {_count(len(reports), 'report')}",
                level="bad" if failed else "plain",
            )
        )
    if doubtful:
        figures.append(
            KeyFigure(
                label="Reports with a figure that may be chance",
                value=str(doubtful),
                detail=f"called {INCONCLUSIVE} below",
            )
        )
    if bundles:
        signed = sum(bool(bundle.signatures) for bundle in bundles)
        figures.append(
            KeyFigure(
                label="Bundles",
                value=str(len(bundles)),
                detail=f"{signed} signed, {size(sum(bundle.bytes for bundle in bundles))} in all",
            )
        )
    return tuple(figures)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _accuracy_text(report: IndexedReport) -> str:
    kept = {k: v for k, v in report.metrics.items() if k not in ("compression", "speedup")}
    return summary(ValidationFacts(metrics=kept, inconclusive=report.inconclusive)) or NOT_MEASURED


def _speed_text(report: IndexedReport) -> str:
    if "speedup" not in report.metrics:
        return NOT_MEASURED
    shown = ValidationFacts(
        metrics=report.metrics, inconclusive=report.inconclusive, busy=report.busy
    )
    return speed_text(shown)


def _gates_text(report: IndexedReport) -> str:
    """Return what the gates found that failed or are open, or how many there are."""
    if report.failed or report.undecided:
        return "; ".join((*report.failed, *report.undecided))
    if not report.gates:
        return ""
    open_text = f", {len(report.doubtful)} on an {INCONCLUSIVE} figure" if report.doubtful else ""
    return f"{report.gates} of {report.gates}{open_text}"


def _verdict_cell(report: IndexedReport) -> Cell:
    if report.passed is None:
        return "no gates"
    if report.verdict == INCONCLUSIVE:
        return Badge(INCONCLUSIVE, "warn")
    return Badge("passed", "good") if report.passed else Badge("failed", "bad")


def _report_table(reports: Sequence[IndexedReport]) -> Table:
    header = ("Model, quantization", "Verdict", "Gates", "Accuracy", "On disk", "Speed", "Report")
    return Table(
        title="Reports",
        header=header,
        rows=tuple(
            (
                f"{report.model}, {report.quantization}",
                _verdict_cell(report),
                _gates_text(report),
                _accuracy_text(report),
                report.on_disk,
                _speed_text(report),
                report.file if report.page is None else Link(report.page, quote(report.page)),
            )
            for report in reports
        ),
        caption="Each against its FP32 reference.",
    )


def _bundle_table(bundles: Sequence[IndexedBundle]) -> Table:
    return Table(
        title="Bundles",
        header=("Model, quantization", "File", "Bytes", "Signed", "Runs on", "sha256"),
        rows=tuple(
            (
                f"{bundle.model}, {bundle.quantization}",
                Link(bundle.file, quote(bundle.file)),
                size(bundle.bytes),
                _signed_cell(bundle),
                ", ".join(bundle.groups),
                f"{bundle.digest.removeprefix('sha256:')[:SHORT]}\u2026",
            )
            for bundle in bundles
        ),
        caption="Neither signatures nor contents were verified here: arvg-trt verify FILE does.",
    )


def _signed_cell(bundle: IndexedBundle) -> Cell:
    keys = ", ".join(hint[:SHORT] or "a key" for hint in bundle.signatures)
    return f"by {keys}" if keys else Badge("no", "warn")


def _unread(index: ReportIndex) -> list[tuple[str, str]]:
    """Return the files that could not be read, each with the reason."""
    every: tuple[IndexedReport | IndexedBundle, ...] = (*index.reports, *index.bundles)
    return [(each.file, each.problem) for each in every if each.problem is not None]


def _unread_table(index: ReportIndex) -> Table:
    return Table(title="Not read", header=("File", "Why"), rows=tuple(_unread(index)))
