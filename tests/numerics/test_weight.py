from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arvg_trt.numerics.packing import (
    load_packed_weights,
    pack_bits,
    save_packed_weights,
    unpack_bits,
)
from arvg_trt.numerics.parts import ScaledWeight
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import (
    FP8,
    QuantizedWeight,
    as_fp8,
    preserve_kernel_sums,
    quantize_weight,
)

FORMATS = [
    WeightFormat(bits=bits, grid=grid, granularity=granularity)
    for bits, grid, granularity in itertools.product(
        range(2, 9), ("uniform", "log"), ("per_tensor", "per_channel")
    )
]
POWERS = [
    WeightFormat(bits=bits, grid="log2", granularity=granularity)
    for bits, granularity in itertools.product(range(2, 6), ("per_tensor", "per_channel"))
]
FORMATS += POWERS
BLOCKS = WeightFormat(bits=4, granularity="per_block", block=32)
SHAPE = (6, 5, 3, 3)


def label(weight_format: WeightFormat) -> str:
    return f"{weight_format.grid}{weight_format.bits}-{weight_format.granularity}"


def gaussian(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Channels of different size, the first one zero but for one weight."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape) * np.geomspace(0.05, 1, shape[0]).reshape(-1, 1, 1, 1)
    weight[0].flat[1:] = 0
    return weight.astype(np.float32)


def levels(quantized: QuantizedWeight, channel: int) -> np.ndarray:
    """Every point of a channel's grid, from the definition of the format."""
    group = channel if quantized.scale.size > 1 else 0
    n = 2 ** (quantized.format.bits - 1) - 1
    scale = float(quantized.scale[group])
    if quantized.format.grid == "uniform":
        return scale * np.arange(-n, n + 1)
    if quantized.format.grid == "log2":
        magnitudes = [scale * 2.0 ** (k - n) for k in range(1, n + 1)]
        return np.array([0.0, *magnitudes, *(-m for m in magnitudes)])
    assert quantized.ratio is not None
    magnitudes = [scale * float(quantized.ratio[group]) ** (n - k) for k in range(1, n + 1)]
    return np.array([0.0, *magnitudes, *(-m for m in magnitudes)])


@pytest.mark.parametrize("weight_format", FORMATS, ids=label)
def test_every_weight_goes_to_its_nearest_grid_point(weight_format: WeightFormat) -> None:
    weight = gaussian()
    quantized = quantize_weight(weight, weight_format)
    n = 2 ** (weight_format.bits - 1) - 1
    assert quantized.q.shape == weight.shape and np.abs(quantized.q).max() <= n
    groups = 1 if weight_format.granularity == "per_tensor" else len(weight)
    assert quantized.scale.shape == (groups,) and (quantized.scale > 0).all()
    found = quantized.dequantize()
    assert found.dtype == np.float32 and found.shape == weight.shape
    for channel, rows in enumerate(weight):
        grid = levels(quantized, channel)
        distance = np.abs(rows.reshape(-1, 1).astype(np.float64) - grid).min(axis=1)
        reached = np.abs(rows.ravel() - found[channel].ravel().astype(np.float64))
        np.testing.assert_allclose(reached, distance, rtol=0, atol=1e-6 * np.abs(grid).max())


@pytest.mark.parametrize("weight_format", FORMATS, ids=label)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_in_parts_is_rounded_as_the_whole(
    weight_format: WeightFormat, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 arrays of a whole weight are eight and more of its size; one channel is dead."""
    weight = gaussian() if not transposed else gaussian(1, (12, 7, 1, 1))[:, :, 0, 0].T
    weight = weight.copy(order="K")
    weight[1] = 0
    importance = np.linspace(0.1, 2, weight.shape[1])
    # So few that a single row would be sampled by a stride, as a tensor with one scale is.
    for module in ("weight", "weight_range"):
        monkeypatch.setattr(f"arvg_trt.numerics.{module}.CHUNK", weight[0].size // 2)
    whole = quantize_weight(weight, weight_format, importance, tap_sums=True)
    monkeypatch.setattr("arvg_trt.numerics.weight.ROUNDED", 2 * weight[0].size)
    parts = quantize_weight(weight, weight_format, importance, tap_sums=True)
    np.testing.assert_array_equal(parts.q, whole.q)
    np.testing.assert_array_equal(parts.scale, whole.scale)
    assert (parts.ratio is None) == (whole.ratio is None)
    if whole.ratio is not None and parts.ratio is not None:
        np.testing.assert_array_equal(parts.ratio, whole.ratio)


@pytest.mark.parametrize(
    "weight_format", [*FORMATS, WeightFormat(bits=8, grid="fp8"), BLOCKS], ids=label
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_scaled_weight_is_rounded_as_its_product(
    weight_format: WeightFormat, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (32, 6, 1, 1) if transposed else (6, 32, 1, 1)
    weight = gaussian(1, shape)[:, :, 0, 0]
    weight = weight.T if transposed else weight
    scale = np.exp(np.random.default_rng(2).normal(size=32)).astype(np.float32)
    whole = quantize_weight(weight * scale, weight_format)
    monkeypatch.setattr("arvg_trt.numerics.weight.ROUNDED", 2 * 32)
    found = quantize_weight(ScaledWeight(weight, scale), weight_format)
    np.testing.assert_array_equal(found.q, whole.q)
    np.testing.assert_array_equal(found.scale, whole.scale)
    for part in (slice(0, 2), slice(3, 6)):
        np.testing.assert_array_equal(found.dequantize_rows(part), whole.dequantize()[part])


@pytest.mark.parametrize("weight_format", FORMATS, ids=label)
def test_zero_weight_tensor_stays_zero(weight_format: WeightFormat) -> None:
    quantized = quantize_weight(np.zeros(SHAPE, np.float32), weight_format)
    assert np.isfinite(quantized.scale).all() and (quantized.scale > 0).all()
    assert not quantized.dequantize().any()


def squared_error(weight: np.ndarray, found: np.ndarray) -> float:
    return float(np.sum((weight.astype(np.float64) - found) ** 2))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_searched_clip_is_not_worse_than_the_largest_weight(
    bits: int, granularity: str, draw: str
) -> None:
    rng = np.random.default_rng(1)
    weight = getattr(rng, draw)(size=(4, 16, 3, 3)).astype(np.float32)
    n = 2 ** (bits - 1) - 1
    axes = None if granularity == "per_tensor" else (1, 2, 3)
    step = np.abs(weight).max(axis=axes, keepdims=True) / np.float32(n)
    plain = squared_error(weight, np.rint(weight.astype(np.float64) / step) * step)
    weight_format = WeightFormat(bits=bits, granularity=granularity)
    searched = squared_error(weight, quantize_weight(weight, weight_format).dequantize())
    # The search looks at a histogram, whose bins are 1/1024 of the range.
    assert searched <= plain * (1 + 1e-3)


def test_importance_shifts_the_error_to_channels_that_matter_less() -> None:
    rng = np.random.default_rng(2)
    weight = rng.laplace(size=(4, 16, 3, 3)).astype(np.float32)
    weight[:, 0] *= 6
    importance = np.ones(16)
    importance[0] = 1000
    weights = np.broadcast_to(importance.reshape(1, -1, 1, 1), weight.shape)
    found = [
        quantize_weight(weight, WeightFormat(bits=4), given).dequantize()
        for given in (importance, None)
    ]
    aware, blind = (np.sum(weights * (weight.astype(np.float64) - f) ** 2) for f in found)
    assert aware < 0.9 * blind
    assert np.abs(found[0] - weight)[:, 1:].mean() > np.abs(found[1] - weight)[:, 1:].mean()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_two_bit_log_is_ternary(granularity: str) -> None:
    weight = gaussian(3)
    quantized = quantize_weight(weight, WeightFormat(bits=2, grid="log", granularity=granularity))
    assert set(np.unique(quantized.q)) == {-1, 0, 1}
    for rows in quantized.dequantize():
        assert len(np.unique(np.abs(rows[rows != 0]))) <= 1


def test_log_is_not_worse_than_uniform_per_tensor_at_four_bits() -> None:
    """On channels of different size, as in trained convolutions, with one scale for all."""
    weight = gaussian(4, (32, 32, 3, 3))
    errors = {
        grid: squared_error(
            weight,
            quantize_weight(
                weight, WeightFormat(bits=4, grid=grid, granularity="per_tensor")
            ).dequantize(),
        )
        for grid in ("log", "uniform")
    }
    assert errors["log"] <= errors["uniform"]


def test_more_bits_are_not_worse() -> None:
    weight = gaussian(5, (8, 16, 3, 3))
    for grid, granularity in itertools.product(("uniform", "log"), ("per_tensor", "per_channel")):
        errors = [
            squared_error(
                weight,
                quantize_weight(
                    weight, WeightFormat(bits=bits, grid=grid, granularity=granularity)
                ).dequantize(),
            )
            for bits in range(2, 9)
        ]
        assert errors == sorted(errors, reverse=True), (grid, granularity)


@st.composite
def coded(draw) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(2, 8))
    size = draw(st.integers(1, 41))
    reach = 2 ** (bits - 1)
    values = draw(st.lists(st.integers(-reach, reach - 1), min_size=size, max_size=size))
    return np.array(values, np.int8), bits


@given(coded())
def test_packed_codes_unpack_to_themselves_in_as_few_bytes_as_there_are(
    case: tuple[np.ndarray, int],
) -> None:
    codes, bits = case
    blob = pack_bits(codes, bits)
    assert blob.dtype == np.uint8 and blob.nbytes == math.ceil(codes.size * bits / 8)
    assert np.array_equal(unpack_bits(blob, bits, codes.shape), codes)


def test_packing_keeps_the_order_of_bits() -> None:
    # +2 on 3 bits: 6, 0, 4, 7 -> 110 000 100 111 and four bits of padding
    blob = pack_bits(np.array([2, -4, 0, 3], np.int8), 3)
    assert blob.tolist() == [0b11000010, 0b01110000]


@pytest.mark.parametrize("weight_format", [*FORMATS, WeightFormat(bits=8, grid="fp8")], ids=label)
def test_packed_file_loads_back_to_the_same_weight(
    tmp_path: Path, weight_format: WeightFormat
) -> None:
    quantized = quantize_weight(gaussian(6, (3, 5, 3, 3)), weight_format)
    bias = np.arange(3, dtype=np.float32)
    save_packed_weights({"site": quantized}, {"site.bias": bias}, tmp_path / "w.safetensors")
    packed, floats = load_packed_weights(tmp_path / "w.safetensors")
    assert np.array_equal(packed["site"].dequantize(), quantized.dequantize())
    assert packed["site"].format == weight_format
    assert list(floats) == ["site.bias"] and np.array_equal(floats["site.bias"], bias)


def test_fp8_weights_are_the_nearest_e4m3_numbers() -> None:
    weight = gaussian(7)
    quantized = quantize_weight(weight, WeightFormat(bits=8, grid="fp8"))
    # Every finite E4M3 number, from its definition: 3 bits of mantissa, exponents -6 to 8.
    normal = [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
    grid = np.array(sorted({0.0, *normal, *(m / 8 * 2.0**-6 for m in range(8))} - {480.0}))
    for rows, found, scale in zip(weight, quantized.dequantize(), quantized.scale, strict=True):
        steps = np.abs(rows.ravel().astype(np.float64)) / float(scale)
        distance = np.abs(steps[:, None] - grid).min(axis=1)
        reached = np.abs(np.abs(found.ravel()) / float(scale) - steps)
        np.testing.assert_allclose(reached, distance, atol=1e-4)


@pytest.mark.parametrize("weight_format", POWERS, ids=label)
def test_powers_of_two_are_the_same_numbers_as_fp8(weight_format: WeightFormat) -> None:
    quantized = quantize_weight(gaussian(8, (6, 50, 3, 3)), weight_format)
    same = as_fp8(quantized)
    assert same.format == WeightFormat(bits=8, grid="fp8", granularity=weight_format.granularity)
    powers = np.abs(same.q.view(FP8).astype(np.float64))
    exponents = np.log2(powers[powers > 0])
    assert np.array_equal(exponents, np.rint(exponents))
    np.testing.assert_array_equal(
        same.dequantize().view(np.uint32) & 0x7FFFFFFF,
        quantized.dequantize().view(np.uint32) & 0x7FFFFFFF,
    )
    assert np.array_equal(same.dequantize(), quantized.dequantize())
    levels_used = {2 ** (weight_format.bits - 1) - 1, *np.abs(quantized.q).ravel().tolist()}
    assert len(np.unique(powers)) == len(levels_used | {0})


def nearest_with_sum(exact: np.ndarray, n: int) -> float:
    """Least squared error of integers within +-n whose errors sum to half a step at most."""
    choices = [(np.floor(v), np.ceil(v)) for v in exact]
    best = np.inf
    for codes in itertools.product(*choices):
        error = exact - np.array(codes)
        if abs(error.sum()) <= 0.5 + 1e-9 and np.abs(codes).max() <= n:
            best = min(best, float(np.square(error).sum()))
    return best


@example([1.9] * 5)
@given(st.lists(st.floats(-6.4, 6.4), min_size=2, max_size=6))
def test_moved_taps_keep_their_sum_at_the_least_squared_error(taps: list[float]) -> None:
    exact = np.array(taps)
    found = preserve_kernel_sums(exact[None, None], np.round(exact)[None, None], 7)[0, 0]
    assert abs((exact - found).sum()) <= 0.5 + 1e-9
    assert np.abs(exact - found).max() <= 1
    assert float(np.square(exact - found).sum()) == pytest.approx(nearest_with_sum(exact, 7))


def test_clipped_taps_are_neither_moved_nor_made_up_for() -> None:
    exact = np.array([[[9.6, -9.4, 0.4, 0.4, 0.3]]])
    codes = np.clip(np.round(exact), -7, 7)
    assert np.array_equal(preserve_kernel_sums(exact, codes, 7), [[[7, -7, 1, 0, 0]]])


@pytest.mark.parametrize("bits", [4, 8])
def test_kernels_lose_less_on_smooth_maps_than_with_nearest_codes(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (16, 12, 3, 3)).astype(np.float32)
    quantized = quantize_weight(weight, WeightFormat(bits=bits), tap_sums=True)
    step = quantized.scale.astype(np.float64).reshape(-1, 1, 1, 1)
    n = 2 ** (bits - 1) - 1
    nearest = np.clip(np.round(weight / step), -n, n) * step

    def error(found: np.ndarray, x: np.ndarray) -> float:
        return float(np.square(np.einsum("oihw,nihw->no", found - weight, x)).sum())

    rough = rng.normal(0, 1, (400, 12, 3, 3))
    smooth = rough.mean(axis=(2, 3), keepdims=True) * 3 + 0.3 * rough
    kept = quantized.dequantize().astype(np.float64)
    assert error(kept, smooth) < 0.5 * error(nearest, smooth)
    assert error(kept, rough) < 1.6 * error(nearest, rough)


def test_points_and_tensors_with_one_scale_get_their_nearest_codes() -> None:
    rng = np.random.default_rng(1)
    for shape, granularity in (((6, 5, 1, 1), "per_channel"), ((6, 5, 3, 3), "per_tensor")):
        weight = rng.normal(0, 0.1, shape).astype(np.float32)
        weight_format = WeightFormat(bits=8, granularity=granularity)
        found = quantize_weight(weight, weight_format, tap_sums=True)
        step = found.scale.astype(np.float64).reshape(-1, *(1,) * (weight.ndim - 1))
        assert np.array_equal(found.q, np.clip(np.round(weight / step), -127, 127))


def behind_fine_search(bits: int, kind: str, seed: int, *, weighted: bool) -> float:
    """How many dB a clip is behind the best of 300 fractions."""
    rng = np.random.default_rng(seed)
    weight = getattr(rng, kind)(size=(8, 400)).astype(np.float32)
    importance = np.exp(rng.normal(0, 1, 400)) if weighted else np.ones(400)
    n = 2 ** (bits - 1) - 1
    found = quantize_weight(weight, WeightFormat(bits=bits), importance if weighted else None)
    wide = weight.astype(np.float64)
    ours = (np.square(found.dequantize() - wide) * importance).sum(axis=1)
    top = np.abs(wide).max(axis=1, keepdims=True)
    best = np.full(8, np.inf)
    for fraction in np.geomspace(0.4, 1.0, 300):
        step = top * fraction / n
        rounded = np.clip(np.rint(wide / step), -n, n) * step
        best = np.minimum(best, (np.square(rounded - wide) * importance).sum(axis=1))
    return float(10 * np.log10(ours.sum() / best.sum()))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_clip_of_many_bits_is_about_that_of_a_fine_search(bits: int, weighted: bool) -> None:
    """The histogram alone is 0.10 to 0.24 dB behind on average, and up to 0.48."""
    found = [
        behind_fine_search(bits, kind, seed, weighted=weighted)
        for seed in range(20)
        for kind in ("normal", "laplace")
    ]
    assert np.mean(found) < 0.03 and max(found) < 0.2


@pytest.mark.parametrize(
    "wanted",
    [
        WeightFormat(bits=8),
        WeightFormat(bits=4),
        WeightFormat(bits=8, granularity="per_tensor"),
        WeightFormat(bits=8, grid="fp8"),
        WeightFormat(bits=4, grid="log"),
        WeightFormat(bits=5, grid="log2"),
        WeightFormat(bits=4, granularity="per_block", block=32),
    ],
)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-35])
@pytest.mark.parametrize("rows", [slice(1, 3), slice(None)], ids=["two rows", "all"])
def test_rows_of_denormal_weights_have_a_scale_and_no_warning(
    wanted: WeightFormat, size: float, rows: slice
) -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, (5, 64)).astype(np.float32)
    weight[rows] = np.float32(size) * np.sign(weight[rows])
    found = quantize_weight(weight, wanted)  # warnings are errors
    made = found.dequantize()
    assert np.isfinite(found.scale).all() and (found.scale >= np.finfo(np.float32).tiny).all()
    assert np.isfinite(made).all() and np.abs(made[rows]).max() <= 2 * size
    if rows == slice(1, 3):
        alone = quantize_weight(weight[[0, 3, 4]], wanted)
        assert np.array_equal(made[[0, 3, 4]], alone.dequantize())
        # So that no factor of a channel beside the median leaves float16.
        assert found.factor is None and found.scale.max() / found.scale.min() < 200
