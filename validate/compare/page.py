"""Show a comparison of reports as a page."""

from __future__ import annotations

import math

from ..formats import number
from ..intervals.bootstrap import LEVEL
from ..report.gates import needs
from ..report.page import Badge, Level, Page, Table, to_html, to_markdown
from .compare import Comparison, Row
from .judge import Cell, Verdict
from .rules import Rule

PERCENT = number(1, " %", scale=100)


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, readable in a terminal too."""
    return to_markdown(_page(comparison))


def comparison_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML file without external resources."""
    return to_html(_page(comparison))


_LEVELS: dict[Verdict, Level] = {"better": "good", "worse": "bad", "inconclusive": "warn"}
HOW = (
    f"Judged by the interval of {100 * LEVEL:g} % of the change, over the same samples in pairs: "
    "worse, if all of it is beyond the tolerance; the same, if no loss beyond it is in the "
    "interval; inconclusive else."
)


def verdict_badge(comparison: Comparison) -> Badge:
    """Return the verdict on the whole."""
    worse = [row.rule.title for row in comparison.rows if row.decides and has(row, "worse")]
    if worse:
        return Badge(f"Regressed: {', '.join(worse)}", "bad")
    if comparison.undecided:
        titles = ", ".join(row.rule.title for row in comparison.undecided)
        return Badge(f"Inconclusive: {titles}", "warn")
    if not any(row.decides and has(row, "same", "better", "worse") for row in comparison.rows):
        return Badge("Inconclusive: nothing could be decided", "warn")
    return Badge("No regression", "good")


def has(row: Row, *verdicts: Verdict) -> bool:
    return any(cell.verdict in verdicts for cell in row.cells)


def _page(comparison: Comparison) -> Page:
    return Page(
        title="Comparison of reports",
        subtitle=f"Baseline: {comparison.labels[0]}",
        verdict=verdict_badge(comparison),
        warnings=comparison.warnings,
        tables=tuple(
            table
            for table in (
                _table("Metrics", HOW, comparison, True),
                _table(
                    "Metrics that inform",
                    "They fail nothing: one other token, the worst of few samples, or the load of "
                    "the machine makes them.",
                    comparison,
                    False,
                ),
            )
            if table.rows
        ),
    )


def _table(title: str, caption: str, comparison: Comparison, decides: bool) -> Table:
    return Table(
        title=title,
        header=("Metric", "Better", "Tolerance", *comparison.labels),
        rows=tuple(
            (
                row.rule.title,
                row.rule.better,
                row.rule.tolerance_text,
                *(_cell_text(row, cell) for cell in row.cells),
            )
            for row in comparison.rows
            if row.decides == decides
        ),
        caption=caption,
    )


def _cell_text(row: Row, cell: Cell) -> str | Badge:
    rule = row.rule
    text = rule.text(cell.value)
    if cell.verdict == "baseline":
        return text
    if cell.change is None or (cell.change == 0 and cell.verdict == "same"):
        return f"{text}, {cell.verdict}"
    between = interval_text(rule, cell)
    said = "; ".join(part for part in (between, needs_text(cell, rule)) if part)
    words = f"{text} ({signed(rule, cell.change)}{f', {said}' if said else ''}, {cell.verdict})"
    return Badge(words, _LEVELS.get(cell.verdict, "plain") if row.decides else "plain")


def signed(rule: Rule, change: float) -> str:
    """Return a change with its sign, in the metric's unit."""
    sign = "\u2212" if change < 0 else "+"
    return f"{sign}{chr(0x221E) if math.isinf(change) else rule.change_text(abs(change))}"


def interval_text(rule: Rule, cell: Cell) -> str:
    """Return the interval of a change; shares of the baseline in per cent of it."""
    if cell.low is None or cell.high is None:
        return ""

    def end(value: float) -> str:
        if not rule.relative:
            return signed(rule, value)
        return f"{chr(0x2212) if value < 0 else '+'}{PERCENT(abs(value))}"

    return f"{end(cell.low)} to {end(cell.high)}"


def needs_text(cell: Cell, rule: Rule) -> str:
    """Return what would decide an inconclusive change, or why there is no interval."""
    if cell.verdict != "inconclusive":
        return ""
    if cell.why:
        return cell.why
    return needs(cell.more, rule.metric)
