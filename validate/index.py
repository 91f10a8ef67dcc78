"""Find the reports and bundles below folders, and read what an index says of each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ..errors import ArvgError, IntegrityError, WorkspaceError
from ..runtime.bundle.layout import BLOBS, INDEX_FILE, LAYOUT_FILE
from ..runtime.bundle.open import is_bundle
from ..runtime.bundle.reader import Bundle
from .formats import TIMES, size
from .report.files import load_report
from .report.gates import Verdict, metric_of
from .report.schema import REPORT_FILE, Report, Sizes, metrics
from .report.spread import inconclusive_metrics

PAGE = "report.html"


class IndexedReport(msgspec.Struct, frozen=True, kw_only=True):
    """A report that was found; ``page`` is the one to open, beside it. Both are from the index.

    ``failed`` says of each gate that failed what it found, ``undecided`` of each that its samples
    leave open; ``doubtful`` gates passed on a figure that is ``inconclusive``. ``metrics`` are
    those that are finite, by the names that gates read. ``busy`` says what others did on a busy
    machine while the speed was timed.
    ``problem`` says why a file could not be read, which leaves all else empty.
    """

    file: str
    page: str | None = None
    problem: str | None = None
    model: str = ""
    quantization: str = ""
    passed: bool | None = None
    verdict: Verdict | None = None
    gates: int = 0
    failed: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    on_disk: str = ""
    busy: str = ""


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
    reports = [path for path in found if path.name == REPORT_FILE]
    if not reports:
        names = ", ".join(str(folder) for folder in folders)
        raise WorkspaceError(
            f"no {REPORT_FILE} below it", where=names, do="run `arvg-trt validate` to write one"
        )
    return ReportIndex(
        reports=tuple(_read_report(path, beside) for path in reports),
        bundles=tuple(_read_bundle(path, beside) for path in found if path.name != REPORT_FILE),
    )


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
    if path.name == REPORT_FILE:
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
    passed = [gate.expression for gate in report.gates if gate.passed and gate.n is None]
    reasons = {
        verdict: tuple(g.reason or g.expression for g in report.gates if g.verdict == verdict)
        for verdict in ("failed", "inconclusive")
    }
    return IndexedReport(
        file=file,
        page=page,
        model=report.model,
        quantization=report.name,
        passed=report.passed,
        verdict=report.verdict,
        gates=len(report.gates),
        failed=reasons["failed"],
        undecided=reasons["inconclusive"],
        doubtful=tuple(text for text in passed if metric_of(text) in doubtful),
        inconclusive=doubtful,
        metrics=finite,
        on_disk=_disk_text(report.sizes),
        busy=report.busy,
    )


def _disk_text(sizes: Sizes) -> str:
    """Return the size of what runs; a report of an older version has packed weights only."""
    if sizes.runs is None or sizes.fp32_running_bytes is None:
        return f"packed weights {TIMES(sizes.compression)} smaller"
    before, now = size(sizes.fp32_running_bytes), size(sizes.running_bytes[sizes.runs])
    runs = f"{TIMES(sizes.compression)} smaller: {before} to {now}"
    if sizes.download is None:
        return runs
    return f"{runs}; {sizes.download.title.lower()} {size(sizes.download.bytes)}"


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
