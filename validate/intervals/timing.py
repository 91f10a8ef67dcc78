"""Compute the intervals of percentiles of timed rounds, and of what is made in a second.

A percentile's interval lies between two of the rounds, in order of their times: how many lie below
the true percentile is binomial, whatever the times are like. Few rounds do not bound a high one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .bootstrap import LEVEL, Interval
from .figure import Figure
from .sampled import Floats, Sampled, median, median_of

if TYPE_CHECKING:
    from ..report.schema import LatencyRow, Part

NOUN = "rounds"
PERCENTILES = (50, 90, 99)
MEDIAN = 50
SIDES = ("fp32", "engine")


def percentile_interval(times: Sequence[float], percent: float, level: float = LEVEL) -> Interval:
    """Return the interval of a percentile between two of the times, or why they do not bound it."""
    from scipy import stats

    count, share, tail = len(times), percent / 100, (1 - level) / 2
    ordered = sorted(times)
    # As many of the times lie below the true percentile as a binomial count says.
    low = int(stats.binom.ppf(tail, count, share))
    high = int(stats.binom.ppf(1 - tail, count, share)) + 1
    if low < 1 or high > count:
        needed = rounds_needed(share, tail)
        return Interval(count, why=f"{count} {NOUN} do not bound it: {needed} would")
    return Interval(count, ordered[low - 1], ordered[high - 1], "order")


def rounds_needed(share: float, tail: float) -> int:
    """Return how many rounds bound a percentile from both sides."""
    return math.ceil(math.log(tail) / math.log(max(share, 1 - share))) + 1


def percentiles(latency: Mapping[Part, LatencyRow]) -> dict[str, Figure]:
    """Return p50, p90 and p99 of FP32 and the engine by part, such as ``total.engine.p90_ms``.

    The median has the interval that ``latency_ms`` has.
    """
    found = {}
    for part, row in latency.items():
        for side in SIDES:
            own = row.fp32 if side == "fp32" else row.engine
            for percent in PERCENTILES:
                value = float(np.percentile(own.samples_ms, percent))
                name = f"{part}.{side}.p{percent}_ms"
                if percent == MEDIAN:
                    found[name] = Figure.of(value, median(own.samples_ms, noun=NOUN))
                else:
                    found[name] = figure_of(value, percentile_interval(own.samples_ms, percent))
    return found


def figure_of(value: float, interval: Interval) -> Figure:
    """Return a value with an interval that is there already."""
    return Figure(
        value=value,
        n=interval.n,
        low=interval.low,
        high=interval.high,
        method=interval.method,
        why=interval.why,
    )


def rate(count: int, times_ms: Sequence[float]) -> Figure:
    """Return how many of `count` a round are made in a second, by the median round."""

    def per_second(columns: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            found: Floats = 1000 * count / median_of(columns[0])
        return found

    columns = np.array([times_ms], np.float64)
    value = float(per_second(columns))
    return Figure.of(value, Sampled(columns, per_second, least=0.0, smooth=False, noun=NOUN))


def rates(latency: Mapping[Part, LatencyRow], noun: str) -> dict[str, Figure]:
    """Return what FP32 and the engine make in a second, such as ``engine.images_per_s``.

    `noun` is "images" or "samples". ``tokens_per_s`` are a generator's, without its image decoder.
    """
    found = {}
    for side in SIDES:
        total, tokens = latency.get("total"), latency.get("tokens")
        if total is not None:
            times = (total.fp32 if side == "fp32" else total.engine).samples_ms
            found[f"{side}.{noun}_per_s"] = rate(total.batch, times)
        if tokens is not None and tokens.tokens is not None:
            times = (tokens.fp32 if side == "fp32" else tokens.engine).samples_ms
            found[f"{side}.tokens_per_s"] = rate(tokens.tokens, times)
    return found
