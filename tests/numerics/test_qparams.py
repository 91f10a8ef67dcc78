"""Scale and zero point: what is rounded to, and the forms in which files hold it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.numerics.qparams import QParams, input_offset
from arvg_trt.numerics.scheme import ActivationFormat


def numbers(qparams: QParams, token: int = 0) -> np.ndarray:
    """All numbers that a token is rounded to, by the definition."""
    q = np.arange(-(2 ** (qparams.bits - 1)), 2 ** (qparams.bits - 1))
    return (q - qparams.zero_point[token]) * qparams.scale[token]


@given(
    scale=st.floats(1e-6, 1e3),
    shift=st.integers(-(2**12), 2**12),
    bits=st.sampled_from([2, 4, 6, 8]),
)
def test_a_plans_entry_and_back_are_the_same(scale: float, shift: int, bits: int) -> None:
    planned = ActivationFormat(bits=bits, scale=scale, shift=shift)
    qparams = QParams.from_format(planned)
    assert qparams.granularity == "per_tensor"
    assert qparams.as_format() == planned
    assert numbers(qparams)[0] == qparams.low[0] * scale


def test_fp8_stays_fp8() -> None:
    planned = ActivationFormat(bits=8, grid="fp8", scale=0.25)
    assert QParams.from_format(planned).dtype == "fp8"
    assert QParams.from_format(planned).as_format() == planned


def test_the_offset_leaves_symmetric_numbers() -> None:
    """A graph rounds x - offset around zero, with one scalar scale."""
    qparams = QParams(np.array([0.5]), np.array([-100]), 8)
    left = numbers(qparams) - qparams.offset
    np.testing.assert_array_equal(left, np.arange(-128, 128) * 0.5)
    assert input_offset(qparams.as_format()) == qparams.offset[0] == 50
    assert input_offset(ActivationFormat(bits=8)) == input_offset(None) == 0


def test_scales_per_token_are_an_engines_scale_times_one_relative_to_it() -> None:
    scale = np.array([0.1, 0.7, 3.0])
    qparams = QParams(scale, np.array([0, -3, 5]), 6)
    assert qparams.granularity == "per_token"
    assert qparams.engine_scale == np.float32(0.7) and qparams.token_scale[1] == 1
    np.testing.assert_allclose(qparams.deployed().scale, scale, rtol=1e-7)
    # What is deployed is deployed as itself.
    again = qparams.deployed()
    np.testing.assert_array_equal(again.token_scale, qparams.token_scale)
    tables = qparams.token_tables()
    np.testing.assert_allclose(tables["token_scale"], scale, rtol=1e-6)
    np.testing.assert_array_equal(tables["token_shift"], [0, 3, -5])
    assert QParams.symmetric(np.array([0.1]), 8).token_tables() == {}


def test_a_plan_holds_the_median_of_scales_per_token_and_no_shift() -> None:
    planned = ActivationFormat(bits=8, granularity="per_position")
    found = QParams(np.array([1.0, 2.0, 4.0]), np.array([1, 2, 3]), 8).fill(planned)
    assert (found.scale, found.shift, found.granularity) == (2.0, 0, "per_position")
    one = QParams(np.array([2.0]), np.array([-7]), 8).fill(ActivationFormat(bits=8))
    assert (one.scale, one.shift) == (2.0, 7)


@pytest.mark.parametrize("shift", [np.array([3, 0, -2])])
def test_files_say_the_zero_point_as_its_negative(shift: np.ndarray) -> None:
    qparams = QParams.from_shift(np.ones(3), shift, 4)
    np.testing.assert_array_equal(qparams.low, shift - 8)
    np.testing.assert_array_equal(qparams.token_tables()["token_shift"], shift)
