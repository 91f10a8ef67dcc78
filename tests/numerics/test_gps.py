"""Gain-projected scaling against its definition: the balance of two rounding errors."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.numerics.gps import gps_scale

positive = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6)


@given(positive, st.randoms(use_true_random=False))
def test_at_the_scale_both_errors_of_a_channel_are_equal(x: list[float], random) -> None:  # type: ignore[no-untyped-def]
    count = len(x)
    dx, wq, dw = (np.array([random.uniform(0.01, 10) for _ in x]) for _ in range(3))
    scale = gps_scale(np.array(x), dx, wq, dw, count - 1, 1.0)
    assert (scale > 0).all() and scale[-1] == 1.0
    weights = np.array(x) * dw / scale**2
    inputs = scale**2 * dx * wq
    np.testing.assert_allclose(weights[:-1], inputs[:-1], rtol=1e-9)
    for factor in (0.9, 1.1):
        moved = np.array(x) * dw / (scale * factor) ** 2 + (scale * factor) ** 2 * dx * wq
        assert (moved[:-1] > (weights + inputs)[:-1]).all()


@given(positive, st.floats(0.1, 10))
def test_channels_permute_and_the_reference_sets_the_size(x: list[float], size: float) -> None:
    x_sq, dx, wq, dw = (np.array(x) * k for k in (1.0, 0.3, 2.0, 0.7))
    scale = gps_scale(x_sq, dx, wq, dw, 0, size)
    assert scale[0] == size
    turned = gps_scale(x_sq[::-1], dx[::-1], wq[::-1], dw[::-1], len(x) - 1, size)
    np.testing.assert_allclose(turned, scale[::-1])


def test_dead_channels_keep_the_scale_one() -> None:
    zero = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    scale = gps_scale(zero, np.array([1, 1, 0, 1, 1.0]), np.array([1, 1, 1, 0, 1.0]), zero, 0, 3.0)
    assert scale.tolist()[:4] == [3.0, 1.0, 1.0, 1.0]
    assert np.isfinite(scale).all()
