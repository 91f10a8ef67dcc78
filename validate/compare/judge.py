"""Judge the change of one metric by its interval, against its tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..intervals.bootstrap import Interval, change_of, more_to_decide
from ..intervals.sampled import Sampled
from .rules import Rule

Verdict = Literal["baseline", "better", "worse", "same", "inconclusive", "not compared"]


@dataclass(frozen=True, slots=True)
class Change:
    """Hold a metric of the baseline and of a report."""

    before: float
    after: float

    @property
    def difference(self) -> float:
        """Return the difference; no error before and after is none."""
        return 0.0 if self.after == self.before else self.after - self.before

    @property
    def share(self) -> float:
        """Return the difference as a share of the baseline; infinite where that is 0."""
        if self.difference == 0 or math.isinf(self.difference):
            return self.difference
        if self.before == 0:
            return math.copysign(math.inf, self.difference)
        return self.difference / abs(self.before)


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one report's value, its change from the baseline, and what that means.

    ``value`` is None if not measured, inf for decibels without error; ``change`` is None where
    there is nothing to compare. ``low`` and ``high`` are the interval of the change over ``n``
    samples, a share of the baseline where the tolerance is one. ``more`` samples would decide an
    inconclusive change; ``why`` says why there is no interval.
    """

    value: float | None
    change: float | None
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    n: int | None = None
    more: int | None = None
    why: str | None = None


def judge(
    rule: Rule,
    change: Change,
    base: Sampled | str | None,
    new: Sampled | str | None,
    *,
    paired: bool,
) -> Cell:
    """Return the verdict on a change.

    It is worse where all of its interval is beyond the tolerance, better where all is beyond it on
    the other side, the same where no loss beyond the tolerance is in it, and inconclusive else.
    Figures that are counted, not sampled (None), and those whose samples a report does not have (a
    text says why) are judged by their value alone.
    """
    moved = change.share if rule.relative else change.difference
    if not math.isfinite(moved) or not (isinstance(base, Sampled) and isinstance(new, Sampled)):
        why = next((text for text in (base, new) if isinstance(text, str)), None)
        return Cell(change.after, change.difference, by_value(rule, moved), why=why)
    alike = paired and base.columns.shape == new.columns.shape
    found = change_of(base, new, paired=alike, relative=rule.relative)
    if found.low is None or found.high is None:
        verdict: Verdict = "same" if moved == 0 else "inconclusive"
        return Cell(change.after, change.difference, verdict, n=found.n, why=found.why)
    verdict = by_interval(rule, found.low, found.high)
    return Cell(
        change.after,
        change.difference,
        verdict,
        found.low,
        found.high,
        found.n,
        needed(rule, moved, found) if verdict == "inconclusive" else None,
    )


def gain(rule: Rule, change: float) -> float:
    """Return a change with the sign that says better by more."""
    return change if rule.better == "higher" else -change


def by_value(rule: Rule, moved: float) -> Verdict:
    """Return the verdict on a change without an interval; NaN is worse."""
    if abs(moved) <= rule.tolerance:
        return "same"
    return "better" if gain(rule, moved) > 0 else "worse"


def by_interval(rule: Rule, low: float, high: float) -> Verdict:
    worst, best = sorted((gain(rule, low), gain(rule, high)))
    if worst > rule.tolerance:
        return "better"
    if worst >= -rule.tolerance:
        return "same"
    return "worse" if best < -rule.tolerance else "inconclusive"


def needed(rule: Rule, moved: float, found: Interval) -> int | None:
    """Return how many more samples like these would tell whether the loss is beyond tolerance."""
    assert found.low is not None and found.high is not None
    worst, best = sorted((gain(rule, found.low), gain(rule, found.high)))
    return more_to_decide(found.n, gain(rule, moved), worst, best, -rule.tolerance)
