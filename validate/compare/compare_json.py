"""A comparison of reports as JSON for programs; `compare` has what it says to people."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from .compare import Comparison, Row
from .judge import Verdict

Number = float | str | None  # JSON has no infinity: decibels without any error are the text "inf"


class ComparedCell(msgspec.Struct, frozen=True, kw_only=True):
    """One report's value, its change from the baseline with its interval, and what that means.

    ``low`` and ``high`` are a share of the baseline where the ``tolerance`` is one. ``more``
    samples would decide an inconclusive change; ``why`` says why there is no interval.
    """

    value: Number
    change: Number
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    n: int | None = None
    more: int | None = None
    why: str | None = None


class ComparedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One metric and the value of each report; one that does not decide fails nothing."""

    metric: str
    better: Literal["higher", "lower"]
    tolerance: str
    cells: tuple[ComparedCell, ...]
    decides: bool = True

    @classmethod
    def of(cls, row: Row) -> ComparedRow:
        return cls(
            metric=row.rule.metric,
            better=row.rule.better,
            tolerance=row.rule.tolerance_text,
            cells=tuple(
                ComparedCell(
                    value=finite_or_text(cell.value),
                    change=finite_or_text(cell.change),
                    verdict=cell.verdict,
                    low=cell.low,
                    high=cell.high,
                    n=cell.n,
                    more=cell.more,
                    why=cell.why,
                )
                for cell in row.cells
            ),
            decides=row.decides,
        )


class ComparedReports(msgspec.Struct, frozen=True, kw_only=True):
    """The whole comparison; the first label is the baseline's.

    ``undecided`` are the metrics that had to be decided and are not.
    """

    labels: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    regressed: bool
    undecided: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Comparison) -> ComparedReports:
        return cls(
            labels=tuple(found.labels),
            warnings=tuple(found.warnings),
            rows=tuple(ComparedRow.of(row) for row in found.rows),
            regressed=found.regressed,
            undecided=tuple(row.rule.metric for row in found.undecided),
        )


def finite_or_text(value: float | None) -> Number:
    """Return a number that JSON can hold, or the text of one that it cannot."""
    return value if value is None or math.isfinite(value) else str(value)
