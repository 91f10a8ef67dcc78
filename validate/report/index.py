"""Find the reports and bundles below folders, and show all of them on one page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from ...errors import ArvgError, IntegrityError, WorkspaceError
from ...runtime.bundle.layout import BLOBS, INDEX_FILE, LAYOUT_FILE
from ...runtime.bundle.open import is_bundle
from ...runtime.bundle.reader import Bundle
from ..facts import ValidationFacts, speed_text, summary
from ..formats import TIMES, size
from .gates import metric_of
from .page import Badge, Cell, KeyFigure, Link, Page, Table
from .schema import Report, Sizes, load_report, metrics
from .spread import INCONCLUSIVE, inconclusive_metrics

REPORT, PAGE = "report.json", "report.html"
SHORT = len("sha256:") + 16  # of a digest; `--json` has all of it
NOT_READ, NOT_MEASURED = "cannot be read", "not measured"


class IndexedReport(msgspec.Struct, frozen=True, kw_only=True):
    """A report that was found; ``page`` is the one to open, beside it. Both are from the index.

    ``failed`` says of each gate that failed what it found; ``doubtful`` gates passed on a figure
    that is ``inconclusive``. ``metrics`` are those that are finite, by the names that gates read.
    ``problem`` says why a file could not be read, which leaves all else empty.
    """

    file: str
    page: str | None = None
    problem: str | None = None
    model: str = ""
    quantization: str = ""
    passed: bool | None = None
    gates: int = 0
    failed: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    on_disk: str = ""


class IndexedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was found; ``signatures`` name keys, and were not verified."""

    file: str
    problem: str | None = None
    model: str = ""
    quantization: str = ""
    bytes: int = 0
    digest: str = ""
    signatures: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class ReportIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what lies below some folders, in the order of the paths."""

    reports: tuple[IndexedReport, ...]
    bundles: tuple[IndexedBundle, ...]


def make_index(folders: Sequence[Path], beside: Path) -> ReportIndex:
    """Read every report and bundle below `folders`; links lead there from files in `beside`.

    Raises:
        WorkspaceError: a folder is not there, or no report is below any.
    """
    found = list(dict.fromkeys(path for folder in folders for path in _files(folder)))
    reports = [path for path in found if path.name == REPORT]
    if not reports:
        names = ", ".join(str(folder) for folder in folders)
        raise WorkspaceError(
            f"no {REPORT} below it", where=names, do="run `arvg-trt validate` to write one"
        )
    return ReportIndex(
        reports=tuple(_read_report(path, beside) for path in reports),
        bundles=tuple(_read_bundle(path, beside) for path in found if path.name != REPORT),
    )


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
    failed = sum(report.passed is False for report in index.reports)
    unread = len(_unread(index))
    gateless = sum(report.passed is None for report in index.reports)
    if failed:
        return Badge(f"{failed} of {_count(len(index.reports), 'report')} failed a gate", "bad")
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
    shown = (f"{_accuracy_text(r)} {_speed_text(r)} {_gates_text(r)}" for r in reports)
    doubtful = sum(INCONCLUSIVE in text for text in shown)
    figures = []
    if gates:
        figures.append(
            KeyFigure(
                label="Gates passed",
                value=f"{gates - failed} of {gates}",
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


def _files(folder: Path) -> Iterator[Path]:
    """Yield reports and bundles below a folder, or the one that is named, without hidden folders.

    Raises:
        WorkspaceError: there is no such path.
    """
    if not folder.exists():
        raise WorkspaceError("no such file or folder", where=str(folder))
    if folder.is_file():
        yield from filter(_is_ours, [folder.resolve()])
    for place, names, files in os.walk(folder.resolve()):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from filter(_is_ours, (Path(place) / name for name in sorted(files)))


def _is_ours(path: Path) -> bool:
    """Return whether a file is called as reports are, or is a tar file that begins as bundles do.

    Other tar files, such as data sets, may be large, and are not read.
    """
    if path.name == REPORT:
        return True
    if path.suffix != ".tar" or not is_bundle(path):
        return False
    with path.open("rb") as stream:
        first = stream.read(100).rstrip(b"\0").decode("utf-8", "replace")
    return first in (LAYOUT_FILE, INDEX_FILE) or first.startswith(BLOBS)


def _read_report(path: Path, beside: Path) -> IndexedReport:
    file = _relative(path, beside)
    try:
        report = load_report(path)
    except ArvgError as error:
        return IndexedReport(file=file, problem=_problem(error))
    except OSError as error:
        return IndexedReport(file=file, problem=str(error.strerror))
    return _row(
        report, file, _relative(page, beside) if (page := path.with_name(PAGE)).is_file() else None
    )


def _row(report: Report, file: str, page: str | None) -> IndexedReport:
    finite = {k: v for k, v in metrics(report).items() if v is not None and math.isfinite(v)}
    doubtful = inconclusive_metrics(report)
    passed = [gate.expression for gate in report.gates if gate.passed]
    return IndexedReport(
        file=file,
        page=page,
        model=report.model,
        quantization=report.name,
        passed=report.passed,
        gates=len(report.gates),
        failed=tuple(gate.reason or gate.expression for gate in report.gates if not gate.passed),
        doubtful=tuple(text for text in passed if metric_of(text) in doubtful),
        inconclusive=doubtful,
        metrics=finite,
        on_disk=_disk_text(report.sizes),
    )


def _disk_text(sizes: Sizes) -> str:
    """Return the size of what runs; a report of an older version has packed weights only."""
    if sizes.runs is None or sizes.fp32_running_bytes is None:
        return f"packed weights {TIMES(sizes.compression)} smaller"
    before, now = size(sizes.fp32_running_bytes), size(sizes.running_bytes[sizes.runs])
    return f"{TIMES(sizes.compression)} smaller: {before} to {now}"


def _read_bundle(path: Path, beside: Path) -> IndexedBundle:
    file, length = _relative(path, beside), path.stat().st_size
    try:
        with Bundle(path) as bundle:
            return IndexedBundle(
                file=file,
                model=bundle.facts.model,
                quantization=bundle.facts.quantization,
                bytes=length,
                digest=bundle.digest,
                signatures=tuple(signature.hint for signature in bundle.signatures),
                groups=tuple(group.name for group in bundle.facts.groups),
            )
    except IntegrityError as error:
        return IndexedBundle(file=file, bytes=length, problem=_problem(error))


def _problem(error: ArvgError) -> str:
    """Return what is wrong with a file and what to do, without its path."""
    return f"{error.what} ({error.do})" if error.do else error.what


def _relative(path: Path, beside: Path) -> str:
    return Path(os.path.relpath(path, beside.resolve())).as_posix()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _accuracy_text(report: IndexedReport) -> str:
    kept = {k: v for k, v in report.metrics.items() if k not in ("compression", "speedup")}
    return summary(ValidationFacts(metrics=kept, inconclusive=report.inconclusive)) or NOT_MEASURED


def _speed_text(report: IndexedReport) -> str:
    if "speedup" not in report.metrics:
        return NOT_MEASURED
    return speed_text(ValidationFacts(metrics=report.metrics, inconclusive=report.inconclusive))


def _gates_text(report: IndexedReport) -> str:
    """Return the gates that failed with what they found, or how many there are."""
    if report.failed:
        return "; ".join(report.failed)
    if not report.gates:
        return ""
    open_text = f", {len(report.doubtful)} on an {INCONCLUSIVE} figure" if report.doubtful else ""
    return f"{report.gates} of {report.gates}{open_text}"


def _verdict_cell(report: IndexedReport) -> Cell:
    if report.passed is None:
        return "no gates"
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
        header=("File", "Model, quantization", "Bytes", "Signed", "Runs on", "Digest"),
        rows=tuple(
            (
                Link(bundle.file, quote(bundle.file)),
                f"{bundle.model}, {bundle.quantization}",
                size(bundle.bytes),
                _signed_cell(bundle),
                ", ".join(bundle.groups),
                f"{bundle.digest[:SHORT]}\u2026",
            )
            for bundle in bundles
        ),
        caption="Neither signatures nor contents were verified here: arvg-trt verify FILE does.",
    )


def _signed_cell(bundle: IndexedBundle) -> Cell:
    keys = ", ".join(hint[:16] or "a key without a name" for hint in bundle.signatures)
    return f"by {keys}" if keys else Badge("no", "warn")


def _unread(index: ReportIndex) -> list[tuple[str, str]]:
    """Return the files that could not be read, each with the reason."""
    every: tuple[IndexedReport | IndexedBundle, ...] = (*index.reports, *index.bundles)
    return [(each.file, each.problem) for each in every if each.problem is not None]


def _unread_table(index: ReportIndex) -> Table:
    return Table(title="Not read", header=("File", "Why"), rows=tuple(_unread(index)))
