"""Intervals of percentiles hold as often as they say, and few rounds bound no high percentile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from arvg_trt.validate.intervals.bootstrap import LEVEL, Interval, change_of, interval_of
from arvg_trt.validate.intervals.orders import samples_needed
from arvg_trt.validate.intervals.sampled import median, percentile
from arvg_trt.validate.intervals.timing import (
    percentiles,
    rate,
    rates,
)
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.report.schema import LatencyRow


def row(fp32: list[float], engine: list[float], **more: int) -> LatencyRow:
    pair = Latency.of(fp32), Latency.of(engine)
    options = {"shape": (2, 3, 8, 8), "batch": 2, "threads": 1} | more
    return LatencyRow(fp32=pair[0], engine=pair[1], speed=ratio(*pair), **options)


def percentile_interval(times: Sequence[float], percent: float) -> Interval:
    return interval_of(percentile(times, percent, noun="rounds"))


@pytest.mark.parametrize(("percent", "count"), [(90, 60), (90, 150), (99, 500)])
def test_the_true_percentile_is_inside_as_often_as_said(percent: int, count: int) -> None:
    """The times are skewed, and their true percentile is known in closed form."""
    random = np.random.default_rng(11)
    true = -np.log(1 - percent / 100)
    found = [percentile_interval(random.exponential(size=count), percent) for _ in range(2000)]
    inside = [
        each.low <= true <= each.high
        for each in found
        if each.low is not None and each.high is not None
    ]
    assert len(inside) == 2000
    # 2000 draws: a share of 95 % is off by more than 1.5 points once in 500 times.
    assert np.mean(inside) >= LEVEL - 0.015


@pytest.mark.parametrize("percent", [90, 99])
def test_few_rounds_do_not_bound_it_and_it_says_how_many_would(percent: int) -> None:
    needed = samples_needed(percent, LEVEL)
    few = percentile_interval(list(range(20)), percent)
    assert few.low is None is few.high
    assert few.why == f"20 rounds do not bound it: {needed} would"
    enough = percentile_interval(list(range(needed)), percent)
    assert enough.method == "order" and enough.low is not None and enough.high == needed - 1
    assert percentile_interval(list(range(needed - 1)), percent).low is None


def test_a_change_of_a_percentile_needs_as_many_rounds_as_the_percentile() -> None:
    few, enough = ([float(k) for k in range(count)] for count in (30, 60))
    found = change_of(percentile(few, 90), percentile(enough, 90), paired=False, relative=True)
    assert found.low is None and found.why == "30 samples do not bound it: 36 would"
    found = change_of(percentile(enough, 90), percentile(enough, 90), paired=False, relative=True)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high


def test_times_that_are_all_alike_have_an_interval_of_one_value() -> None:
    found = percentile_interval([3.0] * 50, 90)
    assert (found.low, found.high) == (3.0, 3.0)


def test_one_round_has_values_and_no_interval() -> None:
    found = percentiles({"total": row([5.0], [2.0])})
    assert found["total.engine.p99_ms"].value == 2.0
    assert all(each.low is None and each.why for each in found.values())


def test_the_median_has_the_interval_of_the_latency() -> None:
    times = [float(v) for v in np.random.default_rng(2).gamma(4, size=20)]
    found = percentiles({"total": row(times, times)})["total.engine.p50_ms"]
    wanted = interval_of(median(times, noun="rounds"))
    assert (found.low, found.high, found.method) == (wanted.low, wanted.high, wanted.method)
    assert found.value == pytest.approx(np.median(times))


def test_rates_are_counts_over_the_median_round() -> None:
    engine = [10.0, 20.0, 30.0, 40.0, 50.0] * 3
    latency = {
        "total": row([100.0] * 15, engine),
        "tokens": row([50.0] * 15, [5.0] * 15, tokens=64),
    }
    found = rates(latency, "images")
    assert found["fp32.images_per_s"].value == pytest.approx(20.0)
    assert found["engine.images_per_s"].value == pytest.approx(2 / 0.030)
    assert found["engine.tokens_per_s"].value == pytest.approx(64 / 0.005)
    own = found["engine.images_per_s"]
    times = interval_of(median(engine, noun="rounds"))
    assert times.low is not None and times.high is not None
    assert own.low == pytest.approx(2000 / times.high, rel=0.2)
    assert own.high == pytest.approx(2000 / times.low, rel=0.2)


def test_what_was_not_timed_has_no_rate() -> None:
    assert rates({}, "images") == {} and percentiles({}) == {}
    alone = rates({"total": row([4.0] * 9, [2.0] * 9)}, "samples")
    assert alone.keys() == {"fp32.samples_per_s", "engine.samples_per_s"}


def test_a_clock_that_stood_still_gives_no_rate() -> None:
    assert rate(1, [0.0] * 9).value is None
