"""Compare reports, and write the page of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import WorkspaceError
from ..validate.report.compare import Comparison, compare, comparison_html
from ..validate.report.schema import load_report
from ..workspace.files import atomic_write


def compare_reports(paths: Sequence[Path], html: Path | None, allow_different: bool) -> Comparison:
    """Compare reports with the first one, and write a page; folders stand for their report.json.

    Raises:
        WorkspaceError: fewer than two, or one that cannot be read.
    """
    if len(paths) < 2:
        raise WorkspaceError("one report cannot be compared", do="name two or more")
    files = [p / "report.json" if p.is_dir() else p for p in paths]
    labelled = [(str(path), load_report(path)) for path in files]
    found = compare(labelled, allow_different=allow_different)
    if html is not None:
        atomic_write(html, comparison_html(found).encode())
    return found
