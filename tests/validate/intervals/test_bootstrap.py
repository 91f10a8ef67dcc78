"""Intervals against scipy's own on plain formulas, their coverage, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arvg_trt.validate.intervals.bootstrap import (
    LEVEL,
    Interval,
    change_of,
    expanded,
    interval_of,
    more_to_decide,
)
from arvg_trt.validate.intervals.sampled import Sampled, mean, median, ratio_of_medians, share, sqnr
from arvg_trt.validate.intervals.shares import share_interval


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-50, 50).map(lambda v: round(v, 2)), min_size=2, max_size=7))
def test_of_few_samples_it_is_students_interval(values: list[float]) -> None:
    found = interval_of(mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    centre = float(np.mean(values))
    assert ends(found) == pytest.approx((centre - reach, centre + reach), abs=1e-9)
    assert found.method == "t" and found.n == len(values)


def test_of_more_samples_it_is_scipys_at_the_level_that_students_length_needs() -> None:
    values = np.random.default_rng(3).exponential(size=24)
    wanted = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=expanded(LEVEL, 24),
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ends(interval_of(mean(list(values)))) == pytest.approx((wanted.low, wanted.high))
    assert 0.95 < expanded(LEVEL, 24) < expanded(LEVEL, 8) < 1


def test_decibels_are_of_the_sums_and_not_a_mean_of_decibels() -> None:
    rng = np.random.default_rng(5)
    signal, noise = rng.uniform(50, 100, 30), rng.uniform(0.5, 2, 30)

    def formula(s: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return 10 * np.log10(s.sum(axis=axis) / n.sum(axis=axis))

    wanted = stats.bootstrap(
        (signal, noise),
        formula,
        paired=True,
        confidence_level=expanded(LEVEL, 30),
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = interval_of(sqnr(list(signal), list(noise)))
    assert ends(found) == pytest.approx((wanted.low, wanted.high), abs=0.02)


def test_the_same_samples_give_the_same_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=20))
    assert interval_of(mean(values)) == interval_of(mean(values))


@pytest.mark.parametrize("count", [5, 12])
def test_an_interval_of_95_percent_covers_the_truth_about_so_often(count: int) -> None:
    """120 draws: 95 % of them lie between 88 % and 100 % with a chance of 0.999."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(120):
        low, high = ends(interval_of(mean(list(rng.normal(3, 2, count)))))
        inside += low <= 3 <= high
    assert inside / 120 >= 0.88


def test_one_sample_has_no_interval_and_says_so() -> None:
    found = interval_of(mean([31.5]))
    assert (found.low, found.high, found.n) == (None, None, 1)
    assert found.why == "1 sample: an interval needs 2 or more"
    assert interval_of(mean([])).why == "no error in any of 0 samples"


def test_images_without_error_are_left_out() -> None:
    found = interval_of(mean([30.0, None, 31.0, None]))
    assert found.n == 2 and ends(found) == ends(interval_of(mean([30.0, 31.0])))
    assert interval_of(mean([None, None])).why == "no error in any of 2 samples"


def test_a_figure_that_is_infinite_without_one_sample_has_no_interval() -> None:
    found = interval_of(sqnr([1.0, 1.0, 1.0], [0.0, 0.0, 0.5]))
    assert found.low is None and "infinite" in str(found.why)
    many = interval_of(sqnr([1.0] * 9, [0.0] * 8 + [0.5]))
    assert many.low is None and "infinite" in str(many.why)


def test_equal_samples_leave_no_doubt() -> None:
    assert ends(interval_of(mean([2.5] * 4))) == (2.5, 2.5)
    assert ends(interval_of(mean([2.5] * 12))) == (2.5, 2.5)


def test_a_median_needs_eight_rounds_and_moves_with_the_ratio() -> None:
    assert "8 or more" in str(interval_of(median([1.0] * 7, noun="rounds")).why)
    rng = np.random.default_rng(2)
    fp32, own = 20 + rng.normal(0, 0.5, 30), 10 + rng.normal(0, 0.2, 30)
    low, high = ends(interval_of(ratio_of_medians(list(fp32), list(own))))
    assert low < np.median(fp32) / np.median(own) < high and 1.8 < low < high < 2.2


def test_pairs_tell_what_the_spread_of_samples_hides() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(30, 4, 20)
    new = base - 0.1 + rng.normal(0, 0.01, 20)
    pair = mean(list(base)), mean(list(new))
    low, high = ends(change_of(*pair, paired=True, relative=False))
    assert -0.12 < low < high < -0.08
    wide = ends(change_of(*pair, paired=False, relative=False))
    assert wide[0] < -1 and wide[1] > 1


def test_a_share_of_the_baseline_is_exact_where_all_samples_grow_alike() -> None:
    base = list(np.random.default_rng(6).exponential(size=12))
    found = change_of(mean(base), mean([1.05 * v for v in base]), paired=True, relative=True)
    assert ends(found) == pytest.approx((0.05, 0.05))


def test_what_is_without_error_in_one_report_alone_is_no_pair() -> None:
    found = change_of(mean([30.0, 31.0]), mean([30.0, None]), paired=True, relative=False)
    assert found.low is None and found.why == "1 samples have no error in one report alone"


def test_so_many_more_samples_do_decide() -> None:
    values = [0.1, 0.5, 0.2, 0.6, 0.0, 0.4]
    low, high = ends(interval_of(mean(values)))
    more = more_to_decide(6, float(np.mean(values)), low, high, 0.5)
    assert more is not None and more > 0

    def reach(n: int) -> float:
        spread = float(np.std(values, ddof=1))
        return float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)

    distance = 0.5 - float(np.mean(values))
    assert reach(6 + more) < distance <= reach(6 + more - 1)
    assert more_to_decide(6, 0.3, low, high, 0.3) is None
    assert more_to_decide(1, 0.3, 0.3, 0.3, 0.5) is None


@pytest.mark.parametrize("hits", [0, 3, 9, 10])
def test_a_share_of_single_trials_is_scipys_exact_interval(hits: int) -> None:
    found = interval_of(share([1.0] * hits + [0.0] * (10 - hits), [1.0] * 10))
    wanted = stats.binomtest(hits, 10).proportion_ci(0.95, method="exact")
    assert found.method == "exact"
    assert ends(found) == pytest.approx((wanted.low, wanted.high))


def test_tokens_of_images_that_go_wrong_together_tell_less() -> None:
    trials = np.full(12, 100.0)
    alike = share_interval(np.full(12, 90.0) + np.tile([0.0, 1.0], 6), trials, 0.95)
    apart = share_interval(np.array([100.0, 80.0] * 6), trials, 0.95)
    assert apart[1] - apart[0] > 2 * (alike[1] - alike[0])


def test_a_share_covers_the_truth_though_its_trials_are_in_groups() -> None:
    rng = np.random.default_rng(8)
    inside = [0, 0]
    for _ in range(150):
        hits = rng.binomial(50, rng.beta(16, 4, 10)).astype(float)
        low, high = share_interval(hits, np.full(10, 50.0), 0.95)
        plain = stats.binomtest(int(hits.sum()), 500).proportion_ci(0.95, method="exact")
        inside[0] += low <= 0.8 <= high
        inside[1] += plain.low <= 0.8 <= plain.high
    assert inside[0] / 150 >= 0.9 > inside[1] / 150


def test_bounds_hold() -> None:
    figure = Sampled(np.array([[0.0, 0.0, 0.3]]), lambda c: c[0].mean(axis=-1), least=0.0)
    assert ends(interval_of(figure))[0] == 0.0
