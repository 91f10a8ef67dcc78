"""GPTQ agrees with the algorithm of its paper, computed in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.numerics.gptq import UnitLevels, compensate, factorize, round_columns
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, nearest_magnitudes, quantize_weight

FORMATS = {
    "uniform": WeightFormat(bits=3),
    "eight bits": WeightFormat(bits=8),
    "one scale": WeightFormat(bits=4, granularity="per_tensor"),
    "log": WeightFormat(bits=4, grid="log"),
    "one log range": WeightFormat(bits=3, grid="log", granularity="per_tensor"),
    "powers of two": WeightFormat(bits=4, grid="log2"),
    "blocks": WeightFormat(bits=4, granularity="per_block", block=32),
}


def correlated(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))
    return mixed * np.exp(rng.normal(size=columns)) + rng.normal(size=columns)


def output_error(weight: np.ndarray, found: QuantizedWeight, x: np.ndarray) -> np.ndarray:
    """By output channel."""
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    error = x @ (flat - found.dequantize().reshape(flat.shape)).T
    return np.square(error).sum(axis=0)


def plain_gptq(weight: np.ndarray, square: np.ndarray, rows: int, step: np.ndarray, top: int):  # type: ignore[no-untyped-def]
    """Codes as in Frantar et al., Algorithm 1: columns of the inverse are eliminated one by one."""
    columns = len(square)
    damping = max(0.01, 0.25 * columns / rows) * np.trace(square) / columns
    inverse = np.linalg.inv(square + damping * np.eye(columns))
    left, codes = weight.copy(), np.zeros_like(weight)
    todo = sorted(range(columns), key=lambda k: (-square[k, k], k))
    for position, k in enumerate(todo):
        later = todo[position + 1 :]
        codes[:, k] = np.clip(np.round(left[:, k] / step), -top, top)
        error = (left[:, k] - codes[:, k] * step) / inverse[k, k]
        for j in later:
            left[:, j] -= error * inverse[k, j]
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return codes


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_are_rounded_as_gptq_does_with_the_inverse(bits: int) -> None:
    rng, x = np.random.default_rng(1), correlated(700, 100, 2)
    weight = rng.normal(0, 0.3, (6, 100)).astype(np.float32)
    nearest = quantize_weight(weight, WeightFormat(bits=bits))
    square = x.T @ x
    codes, errors = round_columns(
        weight.astype(np.float64), nearest.scale, UnitLevels.of(nearest), factorize(square, 700)
    )
    step, top = nearest.scale.astype(np.float64), 2 ** (bits - 1) - 1
    wanted = plain_gptq(weight.astype(np.float64), square, 700, step, top)
    np.testing.assert_array_equal(codes, wanted)
    error = weight - codes * step[:, None]
    damped = square + max(0.01, 0.25 * 100 / 700) * np.trace(square) / 100 * np.eye(100)
    np.testing.assert_allclose(errors, np.diag(error @ damped @ error.T), rtol=1e-9)


@pytest.mark.parametrize("label", FORMATS)
def test_every_grid_gains_and_stays_itself(label: str) -> None:
    rng, x = np.random.default_rng(3), correlated(2000, 64, 4)
    weight = rng.normal(0, 0.3, (10, 64)).astype(np.float32)
    nearest = quantize_weight(weight, FORMATS[label])
    found = compensate(weight, nearest, x.T @ x, len(x))
    before, after = (output_error(weight, q, x).sum() for q in (nearest, found))
    assert after < 0.5 * before
    assert found.format == nearest.format and found.q.dtype == np.int8
    assert found.scale.shape == nearest.scale.shape and found.scale.dtype == np.float32
    assert np.abs(found.q).max() <= 2 ** (FORMATS[label].bits - 1) - 1
    if FORMATS[label].block:
        np.testing.assert_array_equal(found.scale, found.scale.astype(np.float16))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from([(f, b) for f in ("uniform", "log") for b in (2, 3, 5)]),
    st.sampled_from(["per_channel", "per_tensor"]),
)
def test_the_output_error_is_never_above_that_of_nearest(
    seed: int, rows: int, columns: int, outputs: int, grid: tuple[str, int], granularity: str
) -> None:
    """Also with fewer rows than columns, whose moments are singular."""
    x = correlated(rows, columns, seed)
    weight = np.random.default_rng(seed + 1).normal(size=(outputs, columns)).astype(np.float32)
    kind = WeightFormat(grid=grid[0], bits=grid[1], granularity=granularity)  # type: ignore[arg-type]
    nearest = quantize_weight(weight, kind)
    found = compensate(weight, nearest, x.T @ x, rows)
    before, after = (output_error(weight, q, x) for q in (nearest, found))
    if granularity == "per_tensor":
        before, after = before.sum(), after.sum()
    scale = np.square(x @ weight.astype(np.float64).T).sum()
    assert np.all(after <= before + 1e-10 * scale)


def test_dead_channels_are_rounded_to_nearest_and_do_not_disturb() -> None:
    rng, x = np.random.default_rng(5), correlated(500, 20, 6)
    x[:, [3, 11]] = 0
    weight = rng.normal(size=(4, 20)).astype(np.float32)
    nearest = quantize_weight(weight, WeightFormat(bits=8))
    found = compensate(weight, nearest, x.T @ x, len(x))
    np.testing.assert_allclose(
        found.q[:, [3, 11]] * found.scale[:, None], weight[:, [3, 11]], atol=found.scale.max()
    )
    assert output_error(weight, found, x).sum() < output_error(weight, nearest, x).sum()


def test_moments_of_nothing_leave_the_weight_as_it_was() -> None:
    weight = np.random.default_rng(7).normal(size=(4, 9)).astype(np.float32)
    nearest = quantize_weight(weight, WeightFormat(bits=3))
    found = compensate(weight, nearest, np.zeros((9, 9)), 0)
    np.testing.assert_array_equal(found.q, nearest.q)
    np.testing.assert_array_equal(found.scale, nearest.scale)


def test_few_rows_do_not_spoil_what_they_do_not_show() -> None:
    """Held out, the error of a weight seen with 8 rows of 64 columns stays near that of nearest."""
    x, weight = correlated(4000, 64, 8), np.random.default_rng(9).normal(size=(32, 64))
    narrow = weight.astype(np.float32)
    nearest = quantize_weight(narrow, WeightFormat(bits=4))
    few, many = (compensate(narrow, nearest, x[:n].T @ x[:n], n) for n in (8, 2000))
    held_out = [output_error(narrow, q, x[2000:]).sum() for q in (nearest, few, many)]
    assert held_out[1] < 1.1 * held_out[0] and held_out[2] < 0.5 * held_out[1]


@pytest.mark.parametrize("kernel", [(3, 3), (2,)])
def test_a_convolution_keeps_its_shape(kernel: tuple[int, ...]) -> None:
    shape = (5, 4, *kernel)
    columns = int(np.prod(shape[1:]))
    x, weight = correlated(600, columns, 10), np.random.default_rng(11).normal(size=shape)
    narrow = weight.astype(np.float32)
    nearest = quantize_weight(narrow, WeightFormat(bits=4), tap_sums=True)
    found = compensate(narrow, nearest, x.T @ x, 600)
    assert found.q.shape == shape
    assert output_error(narrow, found, x).sum() < output_error(narrow, nearest, x).sum()


@given(st.integers(0, 10**6), st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_nearest_magnitudes_are_those_of_a_search_by_hand(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.sort(rng.uniform(0, 1, (7, 2 ** (bits - 1))) * 10 ** rng.uniform(-6, 3, (7, 1)))
    table[:, 0] = 0
    values = rng.uniform(0, 2, (7, 50)) * table[:, -1:]
    wanted = np.abs(values[:, :, None] - table[:, None]).argmin(axis=2)
    np.testing.assert_array_equal(nearest_magnitudes(values, table), wanted)
