"""Compare reports, and write the page or the summary of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import BundleError, RecipeError, WorkspaceError
from ...extras import require_packages
from ...workspace.files import atomic_write
from ..report.files import load_report
from ..report.schema import REPORT_FILE, Report
from .compare import Comparison, compare
from .page import comparison_html
from .rules import RULES
from .tolerances import parse_limits, read_tolerances


def compare_reports(
    paths: Sequence[Path],
    html: Path | None,
    allow_different: bool,
    summarize: Callable[[str], None] | None = None,
    tolerances: Path | None = None,
    max_regression: str | None = None,
) -> Comparison:
    """Compare reports with the first one, and write a page; a folder stands for its report.json.

    `summarize` gets the comment of a pull request, also where two reports cannot be compared.
    `tolerances` is a file with what counts as the same, `max_regression` limits that alone decide.

    Raises:
        WorkspaceError: fewer than two, or one that cannot be read.
        RecipeError: a summary of more than two, or tolerances that cannot be read.
        BundleError: reports that are not comparable.
    """
    if len(paths) < 2:
        raise WorkspaceError("one report cannot be compared", do="name two or more")
    if summarize is not None and len(paths) > 2:
        raise RecipeError("a summary is of two reports", do="name the baseline and the new one")
    require_packages("report", but=["skimage", "jinja2"])
    rules = RULES if tolerances is None else read_tolerances(tolerances)
    if max_regression is not None:
        rules = parse_limits(max_regression, rules)
    for path in paths:
        require_report(path)
    labelled = [(str(path), load_report(path)) for path in paths]
    try:
        found = compare(labelled, allow_different=allow_different, rules=rules)
    except BundleError as error:
        if summarize is not None:
            summarize(summary_of(labelled, None, error.what))
        raise
    if html is not None:
        atomic_write(html, comparison_html(found).encode())
    if summarize is not None:
        summarize(summary_of(labelled, found))
    return found


def require_report(path: Path) -> None:
    """Raise WorkspaceError for a workspace in place of a report; names the reports in it."""
    found = sorted(path.glob(f"validate/*/{REPORT_FILE}"))
    if found and not (path / REPORT_FILE).is_file():
        named = " or ".join(str(report.parent) for report in found)
        raise WorkspaceError("is a workspace, not a report", where=str(path), do=f"name {named}")


def summary_of(
    labelled: Sequence[tuple[str, Report]], found: Comparison | None, problem: str = ""
) -> str:
    """Return the comment of a pull request, of a baseline and one other report."""
    from .compare_summary import ComparedPair, summary_markdown

    (base_label, base), (label, new) = labelled
    return summary_markdown(ComparedPair((base_label, label), base, new, found, problem))
