"""Bounds of integer sums, as of a float64 sum of the whole weight."""

from __future__ import annotations

import numpy as np
import pytest

from arvg_trt.engines.onnxruntime.integers import largest_sums


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3, 3)])
@pytest.mark.parametrize("transposed", [False, True])
def test_sums_of_a_large_weight_are_bounded_in_parts(
    shape: tuple[int, ...], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = np.random.default_rng(0).integers(-128, 127, shape, np.int8, endpoint=True)
    q[0] = -128  # whose magnitude is no int8
    q = q.T if transposed else q
    monkeypatch.setattr("arvg_trt.numerics.parts.PART", 2 * q[0].size)
    wanted = 255 * np.abs(q.astype(np.float64)).reshape(len(q), -1).sum(axis=1)
    np.testing.assert_array_equal(largest_sums(q), wanted)
