"""Comparing ONNX Runtime with PyTorch holds only where every value was compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvg_trt.errors import ExportError
from arvg_trt.export.parity import ErrorSum, difference, require


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_odd_value_among_many_is_refused(odd: float, dtype: type) -> None:
    reference = np.random.default_rng(0).normal(0, 1, (1, 1000)).astype(dtype)
    require(difference("g", "y", reference, reference))
    for side in (0, 1):
        pair = [reference.copy(), reference.copy()]
        pair[side][0, 500] = odd
        with np.errstate(invalid="ignore"):
            found = difference("g", "y", *pair)
        assert not math.isfinite(found.max)
        with pytest.raises(ExportError, match="differs from PyTorch"):
            require(found)


def test_nan_stays_the_largest_error() -> None:
    total = ErrorSum()
    for value in (0.0, math.nan, 0.5):
        total.add(np.array([1.0, 1.0 + value]), np.array([1.0, 1.0]))
    assert math.isnan(total.max) and math.isnan(total.mean)


def test_zeros_are_equal_to_zeros_and_to_nothing_else() -> None:
    zeros = np.zeros((2, 3), np.float32)
    require(difference("g", "y", zeros, zeros))
    with pytest.raises(ExportError, match=r"1\.00e-02"):
        require(difference("g", "y", zeros + np.float32(1e-2), zeros))
