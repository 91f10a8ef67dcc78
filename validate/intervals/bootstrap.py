"""Compute intervals of figures by drawing their samples again.

`scipy.stats.bootstrap` with bias correction and acceleration (BCa, Efron 1987), with a seed. Few
samples make its intervals too short, so the level is raised to what Student's interval of as many
normal samples has (Hesterberg 2015, the expanded percentile); of less than 8 samples it is
Student's t on the jackknife's error. Over 400 draws an interval of 95 % covered the mean of
8 normal, exponential and log-normal samples in 94, 93 and 90 % (plain BCa: 87, 87, 85 %), of 4
samples by Student's t in 95, 89 and 88 % (BCa: 84, 75, 74 %).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .orders import percentile_ends, samples_needed
from .sampled import Floats, Sampled
from .shares import share_interval

LEVEL = 0.95
FEWEST, FEWEST_ROUNDS = 2, 8  # of a median fewer samples tell nothing
BOOTSTRAP_FROM = 8
RESAMPLES, BATCH = 9_999, 1_000_000
MOST_FOR_BCA = 2_000  # its jackknife takes the square of the number of samples
SEED = 0
Method = Literal["bca", "percentile", "t", "exact", "order"]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Interval:
    """Hold both ends, or why there are none; ``n`` samples made it."""

    n: int
    low: float | None = None
    high: float | None = None
    method: Method | None = None
    why: str | None = None


def interval_of(figure: Sampled, level: float = LEVEL) -> Interval:
    """Return the interval of a figure, or why there is none."""
    columns = figure.counted
    count = columns.shape[1]
    if problem := too_few(figure, count, level):
        return Interval(count, why=problem)
    if figure.share:
        low, high = share_interval(columns[0], columns[1], level)
        return Interval(count, low, high, "exact")
    if figure.percent is not None:
        ends = percentile_ends(columns[0], figure.percent, level)
        assert ends is not None
        return Interval(count, *ends, "order")
    found = resampled((count,), lambda i: figure.statistic(columns[:, i]), level, figure.smooth)
    if found.low is None or found.high is None:
        return found
    low, high = (float(np.clip(v, figure.least, figure.most)) for v in (found.low, found.high))
    return Interval(count, low, high, found.method)


def change_of(
    base: Sampled, new: Sampled, *, paired: bool, relative: bool, level: float = LEVEL
) -> Interval:
    """Return the interval of the change from `base` to `new`, in its unit or as a share of `base`.

    `paired` samples are of the same inputs in the same order, and are drawn together.
    """

    def change(first: Floats, second: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = second - first
            found: Floats = difference / np.abs(first) if relative else difference
        # No error before and after is no change.
        return np.where(first == second, 0.0, found)

    if not paired:
        one, two = base.counted, new.counted
        count = min(one.shape[1], two.shape[1])
        if problem := too_few(base, count, level):
            return Interval(count, why=problem)
        return resampled(
            (one.shape[1], two.shape[1]),
            lambda i, k: change(base.statistic(one[:, i]), new.statistic(two[:, k])),
            level,
            base.smooth,
        )
    both = base.used & new.used
    count = int(both.sum())
    if (base.used != new.used).any():
        one_side = int((base.used != new.used).sum())
        return Interval(count, why=f"{one_side} {base.noun} have no error in one report alone")
    if problem := too_few(base, count, level):
        return Interval(count, why=problem)
    one, two = base.columns[:, both], new.columns[:, both]
    return resampled(
        (count,),
        lambda i: change(base.statistic(one[:, i]), new.statistic(two[:, i])),
        level,
        base.smooth,
    )


def too_few(figure: Sampled, count: int, level: float) -> str | None:
    """Return why so many samples give no interval; None if they do.

    A percentile that they do not bound has none, nor a change of it: drawn again, they never hold
    the times beyond them.
    """
    if count == 0:
        return f"no error in any of {figure.columns.shape[1]} {figure.noun}"
    if figure.percent is not None:
        if percentile_ends(np.arange(count), figure.percent, level) is not None:
            return None
        needed = samples_needed(figure.percent, level)
        return f"{count} {figure.noun} do not bound it: {needed} would"
    least = FEWEST if figure.smooth else FEWEST_ROUNDS
    if count >= least:
        return None
    noun = figure.noun.removesuffix("s") if count == 1 else figure.noun
    return f"{count} {noun}: an interval needs {least} or more"


def resampled(
    counts: tuple[int, ...], figure: Callable[..., Floats], level: float, smooth: bool
) -> Interval:
    """Return the interval of a figure of indices [..., N] of each group of samples."""
    count = min(counts)
    value = float(figure(*(np.arange(n) for n in counts)))
    if not math.isfinite(value):
        return Interval(count, why="the figure is infinite: no error at all")
    if smooth and count < BOOTSTRAP_FROM:
        error = jackknife_error(counts, figure)
        if not math.isfinite(error):
            return Interval(count, why="without one of the samples it is infinite: no error at all")
        half = student(level, count) * error
        return Interval(count, value - half, value + half, "t")
    return drawn(counts, figure, expanded(level, count))


def drawn(counts: tuple[int, ...], figure: Callable[..., Floats], level: float) -> Interval:
    """Return the interval by scipy's bootstrap."""
    from scipy import stats

    count, most = min(counts), max(counts)
    method: Method = "bca" if most <= MOST_FOR_BCA else "percentile"
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")  # that all draws are alike is seen below
        found = stats.bootstrap(
            tuple(np.arange(n) for n in counts),
            lambda *indices, axis: figure(*(i.astype(np.intp) for i in indices)),
            n_resamples=max(999, min(RESAMPLES, 20 * BATCH // most)),
            batch=max(1, BATCH // most),
            vectorized=True,
            confidence_level=level,
            method="BCa" if method == "bca" else "percentile",
            rng=np.random.default_rng(SEED),
        )
    draws = found.bootstrap_distribution
    if not np.isfinite(draws).all():
        return Interval(count, why="some draws of the samples are infinite: no error at all")
    low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    if not (math.isfinite(low) and math.isfinite(high)):  # all alike, or the jackknife's are
        low, high = (float(v) for v in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
        method = "percentile"
    return Interval(count, low, high, method)


def jackknife_error(counts: tuple[int, ...], figure: Callable[..., Floats]) -> float:
    """Return the standard error of a figure from leaving out each sample in turn."""
    variance = 0.0
    for group, count in enumerate(counts):
        every = [np.arange(n) for n in counts]
        left = []
        for k in range(count):
            indices = [np.delete(i, k) if g == group else i for g, i in enumerate(every)]
            left.append(float(figure(*indices)))
        with np.errstate(invalid="ignore"):
            variance += (count - 1) * float(np.var(left))
    return math.sqrt(variance) if variance >= 0 else math.nan


def student(level: float, count: int) -> float:
    """Return how many standard errors of `count` samples an interval reaches to each side."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, count - 1))


def expanded(level: float, count: int) -> float:
    """Return the level at which the bootstrap's interval is as long as Student's."""
    from scipy import stats

    reach = math.sqrt(count / (count - 1)) * student(level, count)
    return float(1 - 2 * stats.norm.sf(reach))


def more_to_decide(
    count: int, value: float, low: float, high: float, limit: float, level: float = LEVEL
) -> int | None:
    """Return how many more samples would bring the interval to one side of `limit`.

    It is of samples like these, whose figure stays `value` while the interval gets shorter with
    the root of their number and with Student's t. None where `value` is the limit itself.
    """
    distance, reach = abs(value - limit), value - low if value > limit else high - value
    if count < FEWEST or not distance > 0 or not math.isfinite(reach):
        return None
    now = reach / student(level, count) * math.sqrt(count)

    def decides(n: int) -> bool:
        return student(level, n) * now / math.sqrt(n) < distance

    above = count
    while not decides(above):
        above *= 2
        if above > 10**9:
            return None
    below = above // 2 if above > count else count
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if decides(middle) else (middle, above)
    return max(1, above - count)
