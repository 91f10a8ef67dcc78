"""Choices from data are made by what was measured: NaN is never the least, nor within a limit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.calibrate.convergence import SiteGrowth
from arvg_trt.calibrate.observers.absmax import keep_absmax
from arvg_trt.errors import CalibrationError, RecipeError
from arvg_trt.numerics.blockwise import quantize_blocks
from arvg_trt.numerics.clipping import least
from arvg_trt.numerics.noise import rounding_sqnr_db
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.search.sensitivity import distance
from arvg_trt.quantize.separate_graphs import to_half
from arvg_trt.quantize.tensor_qparams import best_candidate


def test_nan_is_never_the_least() -> None:
    assert least([math.nan, 3.0, 2.0]) == 2
    assert least([math.inf, 3.0, 4.0]) == 1
    table = np.array([[math.nan, 1.0], [5.0, 2.0]])
    assert list(least(table)) == [1, 0] and list(least(table, axis=1)) == [1, 1]
    for none in ([math.nan, math.nan], [math.inf, math.nan], [math.inf]):
        with pytest.raises(CalibrationError, match="no candidate"):
            least(none)
    errors = [np.array([np.nan, 1.0]), np.array([1.0, 1.0])]
    assert best_candidate(errors, np.ones(2), 2) == 1


@pytest.mark.parametrize("odd", ["tensor", "positions"])
def test_a_growth_of_nan_has_not_converged(odd: str) -> None:
    parts = {"tensor": 0.0, "channels": 0.0, "positions": 0.0, "rms": 0.0}
    assert SiteGrowth(name="a", **parts).converged
    assert not SiteGrowth(name="a", **parts | {odd: math.nan}).converged


def test_nan_is_the_largest_absmax() -> None:
    peaks: dict[str, float] = {}
    for value in (1.0, math.nan, 2.0):
        keep_absmax(peaks, {"y:absmax_high": np.array(value, np.float32), "y:shape": np.array([2])})
    assert math.isnan(peaks["y"])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_rounding_error_that_is_not_finite_has_no_decibels(odd: float) -> None:
    assert rounding_sqnr_db(100.0, 1.0) == pytest.approx(20)
    for pair in ((odd, 1.0), (1.0, odd)):
        with pytest.raises(CalibrationError, match="says nothing"):
            rounding_sqnr_db(*pair)


@pytest.mark.parametrize("name", ["logits", "y"])
def test_a_plan_is_not_chosen_by_a_loss_of_nan(name: str) -> None:
    good = {name: np.array([[0.5, 1.0, 2.0]], np.float32)}
    odd = {name: np.array([[0.5, np.nan, 2.0]], np.float32)}
    assert distance(good, good) == 0.0
    for pair in ((good, odd), (odd, good)):
        with pytest.raises(CalibrationError, match=f"the loss at {name} is nan"):
            distance(*pair)


def test_a_masked_token_adds_nothing_to_the_divergence() -> None:
    free = np.random.default_rng(0).normal(0, 1, (2, 3, 5)).astype(np.float32)
    masked = np.concatenate([free, np.full((2, 3, 2), -np.inf, np.float32)], axis=2)
    moved = free * np.float32(0.9)
    both = np.concatenate([moved, np.full((2, 3, 2), -np.inf, np.float32)], axis=2)
    wanted = distance({"logits": free}, {"logits": moved})
    assert distance({"logits": masked}, {"logits": both}) == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(CalibrationError, match="is inf"):
        distance({"logits": free}, {"logits": np.where(free == free.max(), -np.inf, free)})


@pytest.mark.parametrize(
    "wanted",
    [
        WeightFormat(bits=8),
        WeightFormat(bits=4, granularity="per_block", block=32),
        WeightFormat(bits=8, grid="fp8"),
        WeightFormat(bits=4, grid="log"),
    ],
)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_not_rounded(wanted: WeightFormat, odd: float) -> None:
    weight = np.ones((3, 32), np.float32)
    weight[1, 2] = odd
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        quantize_weight(weight, wanted)
    with pytest.raises(RecipeError, match="beyond float16"):
        to_half(weight, "site")


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1e37])
@pytest.mark.parametrize("energy", [1e-30, 1.0, 1e30])
def test_block_scales_are_chosen_whatever_the_size_of_weights_and_inputs(
    size: float, energy: float
) -> None:
    """Sums of squares that leave float32 would leave codes and scales as memory had them."""
    weight = np.random.default_rng(0).normal(0, 1, (4, 64)).astype(np.float32)
    plain = quantize_blocks(weight, 32, np.ones(64))
    codes, scale, factor = quantize_blocks(weight * np.float32(size), 32, np.full(64, energy))
    assert factor is not None and np.isfinite(scale).all() and (scale > 0).all()
    assert np.mean(codes == plain[0]) > 0.98
