from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.calibrate.observers.smoothed import Scaling
from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.quantize.groups import Readers
from arvg_trt.quantize.scaling import predicted
from arvg_trt.quantize.scaling.predicted import (
    CAPS,
    EXPONENTS,
    Way,
    centers,
    predicted_error,
    predicted_scale,
    reach_of,
    smoothing_scale,
)
from arvg_trt.quantize.tensor_qparams import CLIP_FRACTIONS, best_candidate, clip_candidates

ONE = Scaling(np.ones(1), None)
positive = st.floats(1e-3, 1e3)
channels = st.lists(st.tuples(st.floats(-1e3, 1e3), positive, positive), min_size=1, max_size=12)


def stats(low: np.ndarray, high: np.ndarray) -> TensorStats:
    return TensorStats(low, high, np.ones_like(low), 10)


def spread(rows: list[tuple[float, float, float]]) -> tuple[TensorStats, np.ndarray]:
    low, width, weight = np.array(rows).T
    return stats(low, low + width), weight


@given(channels, st.floats(0, 1), st.booleans())
def test_smoothing_is_the_formula_of_the_paper_up_to_a_common_factor(
    rows: list[tuple[float, float, float]], alpha: float, centered: bool
) -> None:
    seen, weight = spread(rows)
    scale = smoothing_scale(seen, weight, alpha, centered=centered)
    # SmoothQuant, eq. 4, in logarithms; half the range is max|X| only of what is centred.
    largest = np.maximum(-seen.low, seen.high)
    reach = (seen.high - seen.low) / 2 if centered else largest
    logs = alpha * np.log(reach) - (1 - alpha) * np.log(weight)
    assert (scale > 0).all()
    np.testing.assert_allclose(np.log(scale), logs - logs.mean(), atol=1e-9)
    assert np.log(scale).mean() == pytest.approx(0, abs=1e-9)


@given(channels, st.floats(0, 1), st.randoms(use_true_random=False))
def test_permuting_channels_permutes_the_smoothing(
    rows: list[tuple[float, float, float]], alpha: float, random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    scale = smoothing_scale(*spread(rows), alpha)
    permuted = smoothing_scale(*spread([rows[k] for k in order]), alpha)
    np.testing.assert_allclose(permuted, scale[order], rtol=1e-12)


def test_dead_channels_keep_their_scale() -> None:
    low, high = np.array([-1.0, 0, -4, 0]), np.array([1.0, 0, 4, 16])
    weight = np.array([1.0, 1, 0, 1])
    scale = smoothing_scale(stats(low, high), weight, 0.5)
    assert scale[1] == scale[2] == 1
    np.testing.assert_allclose(scale[[0, 3]], [16**-0.25, 16**0.25])
    moved = smoothing_scale(
        stats(low + np.array([0, 3, 0, 0]), high + np.array([0, 3, 0, 0])),
        weight,
        0.5,
        centered=True,
    )
    np.testing.assert_allclose(moved, [8**-0.25, 1, 1, 8**0.25])
    assert np.array_equal(smoothing_scale(stats(low * 0, low * 0), weight, 0.5), np.ones(4))


def test_all_weight_on_the_input_flattens_its_ranges() -> None:
    low, high, weight = np.array([-1.0, -8, 0]), np.array([3.0, 8, 1]), np.array([5.0, 1, 2])
    scale = smoothing_scale(stats(low, high), weight, 1.0, centered=True)
    assert np.ptp((high - low) / scale) == pytest.approx(0, abs=1e-12)
    scale = smoothing_scale(stats(low, high), weight, 1.0)
    assert np.ptp(np.maximum(-low, high) / scale) == pytest.approx(0, abs=1e-12)


def grid_range(grid) -> tuple[float, float]:
    low = int(grid.low[0])
    return low * grid.scale[0], (low + 2**grid.bits - 1) * grid.scale[0]


ranges = st.tuples(st.floats(-50, 50), st.floats(0, 100))


@given(
    st.lists(ranges, min_size=1, max_size=5),
    st.sampled_from([4, 6, 8]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_zero_is_a_point_of_every_candidate_grid(
    rows: list[tuple[float, float]], bits: int, allow_shift: bool, seed: int
) -> None:
    low, width = np.array(rows).T
    smoothing = np.exp(np.random.default_rng(seed).normal(size=len(low)))
    found = clip_candidates(
        stats(low, low + width), Scaling(smoothing, None), bits, allow_shift=allow_shift
    )
    assert len(found) == len(CLIP_FRACTIONS)
    for grid in found:
        assert grid.bits == bits and grid.scale[0] > 0
        assert -(2 ** (bits - 1)) <= grid.zero_point[0] <= 2 ** (bits - 1) - 1


@given(st.lists(ranges, min_size=1, max_size=5), st.sampled_from([4, 6, 8]), st.booleans())
def test_unclipped_candidate_covers_what_was_seen(
    rows: list[tuple[float, float]], bits: int, allow_shift: bool
) -> None:
    low, width = np.array(rows).T
    ones = Scaling(np.ones(len(low)), None)
    grid = clip_candidates(stats(low, low + width), ones, bits, allow_shift=allow_shift)[0]
    bottom, top = grid_range(grid)
    # The grid is put on whole steps, so an end may lie half a step inside.
    slack = 0.5001 * grid.scale[0] + 1e-9
    assert bottom - slack <= low.min() and (low + width).max() <= top + slack


@pytest.mark.parametrize(("low", "high", "shift"), [(-0.28, 6, 117), (0, 3, 128), (-5, 0.1, -122)])
def test_one_sided_range_gets_a_shift_that_uses_all_levels(
    low: float, high: float, shift: int
) -> None:
    seen = stats(np.array([low]), np.array([high]))
    grid = clip_candidates(seen, ONE, 8, allow_shift=True)[0]
    assert grid.zero_point[0] == -shift
    bottom, top = grid_range(grid)
    assert bottom == pytest.approx(low, abs=grid.scale[0])
    assert top == pytest.approx(high, abs=grid.scale[0])
    assert clip_candidates(seen, ONE, 8, allow_shift=False)[0].zero_point[0] == 0


@pytest.mark.parametrize("high", [0.6, 1.0, 1.9])
def test_symmetric_range_gets_no_shift(high: float) -> None:
    seen = stats(np.array([-1.0]), np.array([high]))
    grid = clip_candidates(seen, ONE, 8, allow_shift=True, fractions=[1.0])[0]
    assert grid.zero_point[0] == 0
    assert grid.scale[0] == pytest.approx(max(1, high) / 127)


def test_only_the_long_side_is_clipped() -> None:
    seen = stats(np.array([-0.3]), np.array([6.0]))
    for fraction in CLIP_FRACTIONS:
        grid = clip_candidates(seen, ONE, 8, allow_shift=True, fractions=[fraction])[0]
        bottom, top = grid_range(grid)
        assert bottom == pytest.approx(-0.3, abs=grid.scale[0])
        assert top == pytest.approx(6 * fraction, abs=grid.scale[0])


def test_best_candidate_weights_channels_by_their_gain() -> None:
    errors = [np.array([1.0, 10.0]), np.array([3.0, 1.0])]
    assert best_candidate(errors, np.array([1.0, 1.0]), 2) == 1
    assert best_candidate(errors, np.array([3.0, 0.1]), 2) == 0
    # 4 and 20 against 12 and 2 with gains 2 and sqrt 2; to the fourth power 16 + 40 and 48 + 4
    assert best_candidate(errors, np.array([2.0, 2**0.5]), 2) == 1
    assert best_candidate([np.array([1.0, 9.9]), np.array([3.0, 1.0])], np.array([2, 1.0]), 4) == 0


@given(st.lists(ranges, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_centred_grid_covers_each_channel_around_its_middle(
    rows: list[tuple[float, float]], seed: int
) -> None:
    low, width = np.array(rows).T
    seen = stats(low, low + width)
    smoothing = np.exp(np.random.default_rng(seed).normal(size=len(low)))
    scaling = Scaling(smoothing, centers(seen))
    grid = clip_candidates(seen, scaling, 8, allow_shift=True, fractions=[1.0])[0]
    assert grid.zero_point[0] == 0
    reach = float(max((seen.high - seen.low) / 2 / smoothing))
    assert 127 * grid.scale[0] == pytest.approx(reach, rel=1e-6, abs=1e-9)


def heavy_tailed(rng: np.random.Generator, channels: int, pixels: int) -> np.ndarray:
    """[C, pixels] with a few channels that reach far further than the others."""
    spread = np.exp(rng.normal(0, 0.6, channels))
    spread[:2] *= 8
    return rng.normal(0, 1, (channels, pixels)) * spread[:, None]


def observed(x: np.ndarray) -> TensorStats:
    return TensorStats(x.min(axis=1), x.max(axis=1), np.square(x).sum(axis=1), x.shape[1])


def readers_of(weight: np.ndarray) -> Readers:
    return Readers((np.abs(weight),), np.square(weight).sum(axis=0), (1,))


def measured_error(x: np.ndarray, weight: np.ndarray, scaling: Scaling) -> float:
    """Squared error per pixel of an INT8 product, roundings done for real in float64."""
    seen = observed(x)
    grid = clip_candidates(seen, scaling, 8, allow_shift=True, fractions=[1.0])[0]
    offset = 0.0 if scaling.center is None else (scaling.center / scaling.smoothing)[:, None]
    steps = (x / scaling.smoothing[:, None] - offset) / grid.scale[0]
    low = grid.low[0]
    rounded = np.clip(np.rint(steps), low, low + 255) * grid.scale[0] + offset
    smoothed = weight * scaling.smoothing
    step = np.abs(smoothed).max(axis=1, keepdims=True) / 127
    error = np.rint(smoothed / step) * step @ rounded - weight @ x
    return float(np.square(error).sum() / x.shape[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("center", [False, True])
def test_predicted_error_is_near_the_measured_one(seed: int, center: bool) -> None:
    rng = np.random.default_rng(seed)
    x = heavy_tailed(rng, 48, 4000)
    if center:
        x += rng.normal(0, 6, (48, 1))
    weight = rng.normal(0, 0.2, (64, 48)) * np.exp(rng.normal(0, 0.4, (64, 1)))
    seen, readers = observed(x), readers_of(weight)
    for alpha in (0.0, 0.5, 1.0):
        scale = smoothing_scale(seen, readers.absmax, alpha, centered=center)
        predicted = predicted_error(seen, readers, scale, (8, 8), centered=center)
        scaling = Scaling(scale, centers(seen) if center else None)
        assert predicted == pytest.approx(measured_error(x, weight, scaling), rel=0.5)


def test_predicted_error_of_a_large_weight_is_found_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    seen, readers = observed(heavy_tailed(rng, 48, 100)), readers_of(rng.normal(0, 0.2, (64, 48)))
    whole = predicted_error(seen, readers, np.ones(48), (8, 8), centered=False)
    monkeypatch.setattr(predicted, "CACHED", 5 * 48)
    assert predicted_error(seen, readers, np.ones(48), (8, 8), centered=False) == whole


@given(st.integers(0, 10**6), st.sampled_from([(8, 8), (4, 4), (8, 4)]), st.booleans())
def test_the_scale_of_least_error_is_found_as_by_a_pass_for_each_candidate(
    seed: int, bits: tuple[int, int], centered: bool
) -> None:
    rng = np.random.default_rng(seed)
    channels, outputs = rng.integers(1, 30, 2)
    low, high = (np.exp(rng.normal(0, 2, channels)) * rng.integers(0, 2) for _ in range(2))
    seen = TensorStats(-low, high, np.square(low + high) * 10, 10)
    weights = [
        (rng.normal(size=(outputs, channels)) * rng.integers(0, 9, channels)).astype(np.float32)
        for _ in range(rng.integers(1, 3))
    ]
    energy = np.sum([np.square(weight).sum(axis=0) for weight in weights], axis=0)
    readers = Readers(tuple(weights), energy.astype(np.float64), (1,) * len(weights))
    reach = reach_of(seen, centered=centered)
    least, best = np.inf, np.ones(channels)
    for alpha in EXPONENTS:
        base = smoothing_scale(seen, readers.absmax, alpha, centered=centered)
        largest = (reach / base).max()
        for cap in CAPS if largest > 0 else (1.0,):
            scale = np.maximum(base, reach / (largest * cap)) if largest > 0 else base
            error = predicted_error(seen, readers, scale, bits, centered=centered)
            if error < least:
                least, best = error, scale
    np.testing.assert_array_equal(predicted_scale(seen, readers, bits, centered=centered), best)


def test_an_extreme_of_a_weight_is_found_on_either_side() -> None:
    weight = np.array([[1.0, -3.0], [-2.0, 2.0]], np.float32)
    readers = Readers((weight,), np.square(weight).sum(axis=0).astype(np.float64), (1,))
    np.testing.assert_array_equal(readers.absmax, [2, 3])


@pytest.mark.parametrize("seed", range(4))
def test_predicted_scaling_beats_every_exponent_where_channels_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = heavy_tailed(rng, 48, 4000)
    weight = rng.normal(0, 0.2, (64, 48))
    seen, readers = observed(x), readers_of(weight)
    found = Way("predicted").fit(seen, readers, (8, 8))
    assert found.center is None
    error = measured_error(x, weight, found)
    for alpha in (0.3, 0.5, 0.7, 0.0):
        plain = Scaling(smoothing_scale(seen, readers.absmax, alpha), None)
        assert error < measured_error(x, weight, plain) * 1.02


def test_ways_centre_channels_and_scale_what_lies_around() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (32, 2000)) + rng.normal(0, 8, (32, 1))
    weight = rng.normal(0, 0.2, (16, 32))
    seen, readers = observed(x), readers_of(weight)
    for scales in (None, 0.5, "predicted"):
        plain, moved = (Way(scales, c).fit(seen, readers, (8, 8)) for c in (False, True))
        assert plain.center is None and moved.center is not None
        np.testing.assert_allclose(moved.center, centers(seen))
        assert measured_error(x, weight, moved) < measured_error(x, weight, plain)
    assert np.array_equal(Way(None).fit(seen, readers, (8, 8)).smoothing, np.ones(32))


@pytest.mark.parametrize("centered", [False, True])
def test_silent_tensor_gets_a_scaling_of_ones(centered: bool) -> None:
    seen = stats(np.zeros(3), np.zeros(3))
    for scales in (0.5, "predicted"):
        found = Way(scales, centered).fit(seen, readers_of(np.ones((2, 3))), (8, 8))
        assert np.array_equal(found.smoothing, np.ones(3))
