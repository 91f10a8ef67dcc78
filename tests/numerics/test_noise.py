"""Signal to noise in decibels: one formula, its ends, and what each use refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError, CalibrationError
from arvg_trt.numerics.noise import (
    SignalAndNoise,
    decibels,
    masked_sqnr_db,
    rounding_noise_db,
    rounding_sqnr_db,
    sqnr_db,
)


def test_decibels_are_ten_times_the_logarithm_and_infinite_at_the_ends() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == decibels(1.0, math.inf) == -math.inf
    assert math.isnan(decibels(math.nan, 1.0)) and math.isnan(decibels(math.inf, math.inf))


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 2), (35,)])
def test_a_large_weight_is_compared_in_parts(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rounded = np.rint(exact * 8) / 8
    whole = rounding_noise_db(exact, rounded.__getitem__)
    monkeypatch.setattr("arvg_trt.numerics.parts.PART", 10)
    assert rounding_noise_db(exact, rounded.__getitem__) == pytest.approx(whole, abs=1e-9)


def test_a_rounding_is_always_a_number() -> None:
    exact = np.array([3.0, 4.0])
    assert rounding_noise_db(exact, (exact + 0.05).__getitem__) == pytest.approx(
        10 * math.log10(25 / 0.005)
    )
    assert rounding_noise_db(exact * 0, (exact * 0).__getitem__) == pytest.approx(300)
    assert math.isfinite(rounding_noise_db(exact, exact.__getitem__))
    for pair in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)):
        with pytest.raises(CalibrationError):
            rounding_sqnr_db(*pair)


def test_sums_over_arrays_are_those_of_one_array() -> None:
    rng = np.random.default_rng(0)
    exact, other = rng.standard_normal((2, 64))
    parts = SignalAndNoise()
    for k in range(0, 64, 16):
        parts.add(exact[k : k + 16], other[k : k + 16])
    assert parts.decibels() == pytest.approx(sqnr_db(exact, other), rel=1e-12)


def test_a_comparison_with_silence_or_nan_is_refused() -> None:
    with pytest.raises(AccuracyError, match="no signal"):
        sqnr_db(np.zeros(2), np.ones(2))
    with pytest.raises(AccuracyError, match="not finite"):
        sqnr_db(np.ones(2), np.array([1.0, np.nan]))
    assert sqnr_db(np.zeros(2), np.zeros(2)) == math.inf


def test_a_mask_is_compared_by_its_place() -> None:
    masked = np.array([3.0, -np.inf])
    assert masked_sqnr_db(masked, np.array([3.3, -np.inf])) == pytest.approx(20)
    assert math.isnan(masked_sqnr_db(masked, np.array([3.0, 0.0])))
