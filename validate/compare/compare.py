"""Compare several reports with a baseline: what became better, worse, or may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import BundleError, RecipeError
from ..intervals.figure import COUNTED, SAME_SEED, WITHOUT_INTERVAL
from ..intervals.figures import sampled
from ..report.schema import Report, metrics
from .judge import Cell, Change, judge
from .like import cautions, differences, other_network, same_inputs, same_machine, same_options
from .rules import RULES, Rule


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one metric over all reports, baseline first; one that ``decides`` may fail."""

    rule: Rule
    cells: tuple[Cell, ...]
    decides: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold reports by label, baseline first; ``warnings`` say what is not like for like."""

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Return whether a metric that decides is worse than the baseline beyond its tolerance."""
        return any(
            cell.verdict == "worse" for row in self.rows if row.decides for cell in row.cells
        )

    @property
    def undecided(self) -> tuple[Row, ...]:
        """Return the rows that must be decided and are not, by chance or for lack of a figure."""
        return tuple(
            row
            for row in self.rows
            if row.rule.required
            and {cell.verdict for cell in row.cells} & {"inconclusive", "not compared"}
        )


def compare(
    reports: Sequence[tuple[str, Report]],
    *,
    allow_different: bool = False,
    rules: Sequence[Rule] = RULES,
) -> Comparison:
    """Compare (label, report) pairs with the first one.

    Figures are judged by the interval of their change over the same inputs. Speeds of other
    machines or settings are shown, never judged. What compares images of the same seed, and what no
    interval can be had of, decides nothing unless its rule says so.

    Raises:
        RecipeError: fewer than two reports.
        BundleError: one is of another model, other validation images or another FP32 reference;
            with `allow_different` that is a warning.
    """
    if len(reports) < 2:
        raise RecipeError(
            f"{len(reports)} report cannot be compared", do="name a baseline and another report"
        )
    (base_label, base), *others = reports
    different = [f"{label}: {why}" for label, r in others for why in differences(base, r)]
    if different and not allow_different:
        raise BundleError(
            f"not comparable with {base_label}: {'; '.join(different)}",
            do=f"{same_options(base, [r for _, r in others])}, or give --allow-different",
        )
    base_values, values = metrics(base), [metrics(report) for _, report in others]
    rows = []
    for rule in rules:
        cells = [Cell(base_values[rule.metric], None, "baseline")]
        for (_, report), found in zip(others, values, strict=True):
            cells.append(_cell(rule, base, report, base_values[rule.metric], found[rule.metric]))
        if rule.required or any(cell.value is not None for cell in cells):
            rows.append(Row(rule, tuple(cells), decides(rule, base)))
    warnings = [*different, *(w for label, r in others for w in cautions(base, label, r))]
    warnings += [
        f"{label}: {row.rule.title} was not measured, the baseline has it"
        for row in rows
        for (label, _), cell in zip(others, row.cells[1:], strict=True)
        if cell.value is None and row.cells[0].value is not None
    ]
    warnings += by_value_alone([label for label, _ in others], rows)
    return Comparison(tuple(label for label, _ in reports), tuple(rows), tuple(warnings))


def by_value_alone(labels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return what is judged without an interval, by report and reason."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for label, cell in zip(labels, row.cells[1:], strict=True):
            if row.decides and cell.why and cell.verdict in ("better", "same", "worse"):
                counts[label, cell.why] = counts.get((label, cell.why), 0) + 1
    return [
        f"{label}: {count} metrics are judged by their value alone: {why}"
        for (label, why), count in counts.items()
    ]


def decides(rule: Rule, base: Report) -> bool:
    """Return whether a loss of this metric may fail a comparison."""
    if rule.decides is not None:
        return rule.decides
    chaotic = bool(base.generation) and rule.metric in SAME_SEED
    return not chaotic and rule.metric not in WITHOUT_INTERVAL


def _cell(
    rule: Rule, base: Report, report: Report, before: float | None, after: float | None
) -> Cell:
    if before is None or after is None:
        return Cell(after, None, "not compared")
    change = Change(before, after)
    if rule.machine and not same_machine(base, report):
        return Cell(after, change.difference, "not compared")
    if option := other_network(rule.metric, base, report):
        return Cell(after, change.difference, "not compared", why=f"another --{option}")
    if rule.metric in COUNTED:
        return judge(rule, change, None, None, paired=False)
    return judge(
        rule,
        change,
        sampled(base, rule.metric),
        sampled(report, rule.metric),
        paired=not rule.machine and same_inputs(base, report),
    )
