from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.calibrate.scaling import (
    CLIP_FRACTIONS,
    best_candidate,
    clip_candidates,
    smoothing_scale,
)
from arvg_trt.calibrate.statistics import TensorStats

positive = st.floats(1e-3, 1e3)
channels = st.lists(st.tuples(st.floats(-1e3, 1e3), positive, positive), min_size=1, max_size=12)


def stats(low: np.ndarray, high: np.ndarray) -> TensorStats:
    return TensorStats(low, high, np.ones_like(low), 10)


def spread(rows: list[tuple[float, float, float]]) -> tuple[TensorStats, np.ndarray]:
    low, width, weight = np.array(rows).T
    return stats(low, low + width), weight


@given(channels, st.floats(0, 1))
def test_smoothing_is_the_formula_of_the_paper_up_to_a_common_factor(
    rows: list[tuple[float, float, float]], alpha: float
) -> None:
    seen, weight = spread(rows)
    scale = smoothing_scale(seen, weight, alpha)
    # SmoothQuant, eq. 4, in logarithms; max|X| of a grid shifted to the centre of the range.
    logs = alpha * np.log((seen.high - seen.low) / 2) - (1 - alpha) * np.log(weight)
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
    low, high = np.array([-1.0, 3, -4, 0]), np.array([1.0, 3, 4, 16])
    weight = np.array([1.0, 1, 0, 1])
    scale = smoothing_scale(stats(low, high), weight, 0.5)
    assert scale[1] == scale[2] == 1
    np.testing.assert_allclose(scale[[0, 3]], [8**-0.25, 8**0.25])
    assert np.array_equal(smoothing_scale(stats(low * 0, low * 0), weight, 0.5), np.ones(4))


def test_all_weight_on_the_input_flattens_its_ranges() -> None:
    low, high = np.array([-1.0, -8, 0]), np.array([3.0, 8, 1])
    scale = smoothing_scale(stats(low, high), np.array([5.0, 1, 2]), 1.0)
    assert np.ptp((high - low) / scale) == pytest.approx(0, abs=1e-12)


def grid_range(grid) -> tuple[float, float]:
    low = -(2 ** (grid.bits - 1)) + grid.shift
    return low * grid.scale, (low + 2**grid.bits - 1) * grid.scale


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
    found = clip_candidates(stats(low, low + width), smoothing, bits, allow_shift=allow_shift)
    assert len(found) == len(CLIP_FRACTIONS)
    for grid in found:
        assert grid.bits == bits and grid.scale > 0
        assert -(2 ** (bits - 1)) <= -grid.shift <= 2 ** (bits - 1) - 1
        assert np.array_equal(grid.smoothing, smoothing.astype(np.float32))


@given(st.lists(ranges, min_size=1, max_size=5), st.sampled_from([4, 6, 8]), st.booleans())
def test_unclipped_candidate_covers_what_was_seen(
    rows: list[tuple[float, float]], bits: int, allow_shift: bool
) -> None:
    low, width = np.array(rows).T
    ones = np.ones(len(low))
    grid = clip_candidates(stats(low, low + width), ones, bits, allow_shift=allow_shift)[0]
    bottom, top = grid_range(grid)
    # The grid is put on whole steps, so an end may lie half a step inside.
    slack = 0.5001 * grid.scale + 1e-9
    assert bottom - slack <= low.min() and (low + width).max() <= top + slack


@pytest.mark.parametrize(("low", "high", "shift"), [(-0.28, 6, 117), (0, 3, 128), (-5, 0.1, -122)])
def test_one_sided_range_gets_a_shift_that_uses_all_levels(
    low: float, high: float, shift: int
) -> None:
    seen = stats(np.array([low]), np.array([high]))
    grid = clip_candidates(seen, np.ones(1), 8, allow_shift=True)[0]
    assert grid.shift == shift
    bottom, top = grid_range(grid)
    assert bottom == pytest.approx(low, abs=grid.scale)
    assert top == pytest.approx(high, abs=grid.scale)
    assert clip_candidates(seen, np.ones(1), 8, allow_shift=False)[0].shift == 0


@pytest.mark.parametrize("high", [0.6, 1.0, 1.9])
def test_symmetric_range_gets_no_shift(high: float) -> None:
    seen = stats(np.array([-1.0]), np.array([high]))
    grid = clip_candidates(seen, np.ones(1), 8, allow_shift=True, fractions=[1.0])[0]
    assert grid.shift == 0
    assert grid.scale == pytest.approx(max(1, high) / 127)


def test_only_the_long_side_is_clipped() -> None:
    seen = stats(np.array([-0.3]), np.array([6.0]))
    for fraction in CLIP_FRACTIONS:
        grid = clip_candidates(seen, np.ones(1), 8, allow_shift=True, fractions=[fraction])[0]
        bottom, top = grid_range(grid)
        assert bottom == pytest.approx(-0.3, abs=grid.scale)
        assert top == pytest.approx(6 * fraction, abs=grid.scale)


def test_best_candidate_weights_channels_by_their_gain() -> None:
    errors = [np.array([1.0, 10.0]), np.array([3.0, 1.0])]
    assert best_candidate(errors, np.array([1.0, 1.0]), 2) == 1
    assert best_candidate(errors, np.array([3.0, 0.1]), 2) == 0
    # 4 and 20 against 12 and 2 with gains 2 and sqrt 2; to the fourth power 16 + 40 and 48 + 4
    assert best_candidate(errors, np.array([2.0, 2**0.5]), 2) == 1
    assert best_candidate([np.array([1.0, 9.9]), np.array([3.0, 1.0])], np.array([2, 1.0]), 4) == 0
