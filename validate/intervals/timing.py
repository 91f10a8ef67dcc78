"""Compute the intervals of percentiles of timed rounds, and of what is made in a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figure import Figure
from .sampled import Floats, Sampled, median, median_of, percentile

if TYPE_CHECKING:
    from ..report.schema import LatencyRow, Part

NOUN = "rounds"
PERCENTILES = (50, 90, 99)
MEDIAN = 50
SIDES = ("fp32", "engine")


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
                found[f"{part}.{side}.p{percent}_ms"] = Figure.of(
                    value,
                    median(own.samples_ms, noun=NOUN)
                    if percent == MEDIAN
                    else percentile(own.samples_ms, percent, noun=NOUN),
                )
    return found


def rate_sampled(count: int, times_ms: Sequence[float]) -> Sampled:
    """Return how many of `count` a round are made in a second, by the median round."""

    def per_second(columns: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            found: Floats = 1000 * count / median_of(columns[0])
        return found

    columns = np.array([times_ms], np.float64)
    return Sampled(columns, per_second, least=0.0, smooth=False, noun=NOUN)


def rate(count: int, times_ms: Sequence[float]) -> Figure:
    """Return the rate of a median round with its interval."""
    sampled = rate_sampled(count, times_ms)
    return Figure.of(float(sampled.statistic(sampled.columns)), sampled)


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
