"""Every figure holds only when it was measured: NaN passes no gate and hides in no maximum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError
from arvg_trt.numerics.noise import sqnr_db
from arvg_trt.validate.compare.judge import Change, judge
from arvg_trt.validate.compare.rules import Rule
from arvg_trt.validate.intervals.sampled import mean
from arvg_trt.validate.metrics.frechet import frechet_distance
from arvg_trt.validate.metrics.image import none_if_infinite
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.metrics.logits import LogitsAccumulator
from arvg_trt.validate.metrics.outputs import OutputAccumulator, require_like
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.gates import Gate, evaluate

ODD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("operator", ["<=", "<", ">=", ">", "=="])
@pytest.mark.parametrize("value", [math.nan, -math.inf, None])
def test_no_gate_passes_without_a_measurement(operator: str, value: float | None) -> None:
    (result,) = evaluate([Gate("psnr", operator, 5.0)], {"psnr": value})
    assert not result.passed and result.reason == "psnr was not measured"


def test_an_infinite_error_is_not_called_none() -> None:
    (result,) = evaluate([Gate("kl", "<=", 0.1)], {"kl": math.inf})
    assert not result.passed and result.reason == "kl is inf"


@pytest.mark.parametrize("odd", ODD)
def test_decibels_of_what_is_not_finite_are_refused(odd: float) -> None:
    good = np.array([1.0, 2.0])
    for pair in ((good, np.array([1.0, odd])), (np.array([1.0, odd]), good)):
        with pytest.raises(AccuracyError, match="not finite"):
            sqnr_db(*pair)


def test_no_error_is_none_and_nan_is_not() -> None:
    assert none_if_infinite(math.inf) is None and none_if_infinite(3.0) == 3.0
    for odd in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="no measurement"):
            none_if_infinite(odd)


def test_a_spread_does_not_leave_nan_out() -> None:
    assert Summary.of([math.inf, 3.0]).each == (None, 3.0)
    for odd in (math.nan, -math.inf):
        with pytest.raises(AccuracyError, match="NaN or -inf"):
            Summary.of([30.0, odd])


def test_a_mask_counts_by_its_place_and_nothing_else_may_be_infinite() -> None:
    reference = np.array([1.0, -np.inf, 3.0])
    close = np.array([1.0, -np.inf, 3.5])
    require_like("qdq", "s0", "g/y", reference, close)
    tally = OutputAccumulator()
    tally.add(reference, close)
    found = tally.result("g/y")
    assert found.max_error == 0.5 and found.sqnr_db == pytest.approx(10 * math.log10(10 / 0.25))
    for bad in (
        [-np.inf, -np.inf, 3],
        [1, np.inf, 3],
        [1, 2, 3],
        [1, np.nan, 3],
        [1, -np.inf, np.nan],
    ):
        with pytest.raises(AccuracyError, match=r"g/y of qdq gave . non-finite of 3"):
            require_like("qdq", "s0", "g/y", reference, np.array(bad, np.float64))


def test_outputs_without_a_finite_value_prove_nothing() -> None:
    """NaN in the same places is FP32's own; but something has to be left that is compared."""
    odd = np.array([np.nan, -np.inf])
    require_like("qdq", "s0", "g/y", odd, odd)
    tally = OutputAccumulator()
    tally.add(odd, odd)
    with pytest.raises(AccuracyError, match="no finite value of g/y"):
        tally.result("g/y")
    tally.add(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))
    assert tally.result("g/y").max_error == 0


def test_nan_is_the_largest_error() -> None:
    tally = OutputAccumulator()
    tally.add(np.array([1.0, 2.0]), np.array([1.0, np.nan]))
    tally.add(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    assert math.isnan(tally.largest)
    with pytest.raises(AccuracyError, match="not finite"):
        tally.result("g/y")


def logits_result(reference: np.ndarray, value: np.ndarray) -> float:
    tally = LogitsAccumulator()
    tally.add(reference, value, np.zeros(reference.shape[:2], np.int64), np.array([True]))
    return tally.result().kl


def test_a_divergence_of_nan_is_not_zero() -> None:
    good = np.random.default_rng(0).normal(0, 1, (1, 2, 7))
    assert logits_result(good, good) == 0.0
    odd = good.copy()
    odd[0, 1, 3] = np.nan
    for pair in ((good, odd), (odd, good)):
        with pytest.raises(AccuracyError, match="not finite"):
            logits_result(*pair)


def test_a_distance_of_features_that_overflow_is_not_zero() -> None:
    rng = np.random.default_rng(0)
    huge = rng.normal(0, 1e200, (5, 3))
    with pytest.raises(AccuracyError, match="too large"), np.errstate(over="ignore"):
        frechet_distance(huge, rng.normal(0, 1, (5, 3)))


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_value_of_nan_is_never_better(better: str, relative: bool) -> None:
    rule = Rule("psnr", "M", better, 0.1, relative=relative)  # type: ignore[arg-type]
    samples = mean([3.0] * 9)

    def verdict(before: float, after: float) -> str:
        return judge(rule, Change(before, after), samples, samples, paired=True).verdict

    assert verdict(3.0, math.nan) == "worse"
    assert verdict(math.inf, math.inf) == "same"
    assert verdict(math.inf, 3.0) == ("worse" if better == "higher" else "better")


def test_a_speed_of_no_time_is_inconclusive() -> None:
    none = Latency.of([0.0] * 16)
    with np.errstate(invalid="ignore"):
        assert ratio(none, none).verdict == "inconclusive"
