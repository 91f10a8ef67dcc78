"""Keep a report as the baseline of later ones: a small file that git shows changes of."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ..errors import AccuracyError, BundleError, InconclusiveError, WorkspaceError, bounded
from ..extras import require_packages
from ..validate.compare.compare import Comparison, compare
from ..validate.report.files import load_report
from ..validate.report.gates import verdict_text
from ..validate.report.schema import REPORT_FILE, Report
from ..workspace.files import atomic_write
from ..workspace.stage import require_outputs
from ..workspace.workspace import WORKSPACE_FILE, Workspace

OWN_BASELINE = "remove the baseline, or name another file, and save a new one"


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Say what became of a baseline, and what comparing the new report with it found."""

    state: Literal["kept", "replaced"]
    found: Comparison

    @property
    def open(self) -> bool:
        """Return whether it was kept since a metric may be worse."""
        return self.state == "kept" and not self.found.regressed and perhaps_worse(self.found)


def find_report(path: Path, name: str | None = None) -> Path:
    """Return a report.json: the file itself, that in a folder, or that of a workspace, verified.

    Raises:
        WorkspaceError: there is none, several without a `name`, or the workspace has changed since.
    """
    if path.is_file() or (path / REPORT_FILE).is_file():
        if name is not None:
            raise WorkspaceError("is a report, and has one name", where=str(path), do="no --name")
        return path if path.is_file() else path / REPORT_FILE
    if not (path / WORKSPACE_FILE).is_file():
        raise WorkspaceError(
            "is neither a report nor a workspace", where=str(path), do="run `arvg-trt validate`"
        )
    names = sorted(found.parent.name for found in path.glob(f"validate/*/{REPORT_FILE}"))
    if name is None and len(names) > 1:
        raise WorkspaceError(
            f"has reports of {bounded(names, 'quantizations', 8)}",
            where=str(path),
            do="choose one by --name",
        )
    chosen = name or (names[0] if names else "int8")
    with Workspace(path) as workspace:
        folder, _ = require_outputs(workspace, "validate", chosen, stage="validate")
    return folder / REPORT_FILE


def baseline_of(report: Report, with_latency: bool = False) -> Report:
    """Return what comparisons read of a report, without what varies by machine and by run.

    Latencies stay `with_latency`, which is for a machine whose speed is steady.
    """
    return msgspec.structs.replace(
        report,
        latency=report.latency if with_latency else {},
        engines=(),
        ran={},
        fallbacks=(),
        sites=(),
        second_opinions=(),
        figure_opinions=(),
        opinions_not_run=(),
        gates=(),
        figures={},  # computed again from what each sample adds
        percentiles={},
        rates={},
        starts={},
        machine=report.machine if with_latency else None,
        options={},
        recipe=None,
        environment=None,
        memory={},
        sizes=msgspec.structs.replace(report.sizes, memory_bytes={}),
    )


def encode_baseline(report: Report) -> bytes:
    """Return indented JSON with sorted keys, the same for equal reports."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=2) + b"\n"


def save_baseline(
    source: Path, output: Path, *, with_latency: bool = False, accept_failed_gates: bool = False
) -> Report:
    """Write the baseline of the report `source` to a new file, and return it.

    Raises:
        WorkspaceError: the file is there already.
        AccuracyError: a gate of the report failed.
    """
    if output.exists():
        raise WorkspaceError(
            "is there already", where=str(output), do="`arvg-trt baseline update` replaces it"
        )
    report = load_report(source)
    require_passed(report, source, accept_failed_gates)
    kept = baseline_of(report, with_latency)
    atomic_write(output, encode_baseline(kept))
    return kept


def update_baseline(
    file: Path, source: Path, *, accept_regression: bool = False, accept_failed_gates: bool = False
) -> Update:
    """Replace a baseline by a report that is better somewhere and worse nowhere.

    Where all changes are within their tolerance the old one stays, and where one is inconclusive,
    so that small losses do not add up from one update to the next. Latencies stay where the old one
    has some.

    Raises:
        BundleError: another model, quantization or other samples.
        AccuracyError: a gate failed, or a metric is worse and that is not accepted.
    """
    require_packages("report", but=["skimage", "jinja2"])
    old, report = load_report(file), load_report(source)
    if old.name != report.name:
        raise BundleError(
            f"is of the quantization {report.name}, and the baseline of {old.name}",
            where=str(source),
            do=OWN_BASELINE,
        )
    new = baseline_of(report, with_latency=bool(old.latency))
    try:
        found = compare([(str(file), old), (str(source), new)])
    except BundleError as error:
        error.do = OWN_BASELINE
        raise
    require_passed(report, source, accept_failed_gates)
    loses = found.regressed or perhaps_worse(found)
    if (loses and not accept_regression) or (not loses and not gained(found)):
        return Update(state="kept", found=found)
    atomic_write(file, encode_baseline(new))
    return Update(state="replaced", found=found)


def gained(found: Comparison) -> bool:
    """Return whether the second report is better somewhere, or measured what the first did not."""
    pairs = [row.cells for row in found.rows if row.decides]
    return any(
        new.verdict == "better" or (base.value is None and new.value is not None)
        for base, new in pairs
    )


def perhaps_worse(found: Comparison) -> bool:
    return any(row.decides and row.cells[1].verdict == "inconclusive" for row in found.rows)


def require_passed(report: Report, source: Path, accepted: bool) -> None:
    """Raise AccuracyError for a report whose gates failed, unless that is accepted."""
    if report.verdict not in (None, "passed") and not accepted:
        kind = AccuracyError if report.verdict == "failed" else InconclusiveError
        raise kind(
            f"{report.verdict}: {verdict_text(report.gates, report.verdict)}",
            where=str(source),
            do="mend it first, or give --accept-failed-gates",
        )
