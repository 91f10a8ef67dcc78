"""The rule by which a tensor is stored: the smallest that gives the same bytes."""

from __future__ import annotations

import io
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from arvg_trt.engines.packed.regions import Region
from arvg_trt.engines.packed.rules import store
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, log_table, quantize_weight
from arvg_trt.runtime.packed import expand
from arvg_trt.runtime.packed.expand import log_levels, part_blocks

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(24, 64)).astype(np.float32)


def region_of(array: NDArray[np.generic], name: str = "w") -> Region:
    few = array.dtype.itemsize == 1
    return Region(0, array.nbytes, array.dtype.itemsize, array.shape, few, (name,))


def stored(
    array: NDArray[np.generic],
    name: str = "w",
    known: dict[str, QuantizedWeight] | None = None,
    gap: int = 0,
) -> tuple[str, int]:
    """Store a tensor, see that it is read back, and return its rule and bytes."""
    found = store(region_of(array, name), array.tobytes(), gap, known or {})
    blocks = part_blocks(found.part, io.BytesIO(found.data))
    assert b"".join(blocks) == bytes(gap) + array.tobytes()
    assert found.part.stored == len(found.data)
    return found.part.rule, len(found.data)


@pytest.mark.parametrize("bits", range(2, 8))
def test_integers_on_a_grid_of_fewer_bits_take_those_bits(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arvg_trt.numerics.parts.PART", 100)  # values that are counted at once
    q = quantize_weight(NORMAL, WeightFormat(bits=bits)).q
    rule, size = stored(q)
    assert rule == "table"
    assert size == q.size * bits // 8 + len(np.unique(q))


def test_integers_of_eight_bits_stay_as_they_are() -> None:
    q = quantize_weight(NORMAL, WeightFormat(bits=8)).q
    assert stored(q) == ("raw", q.size)


def test_powers_of_two_in_fp8_take_the_bits_of_their_levels() -> None:
    levels = np.array([0, 1, 2, 4, 8, -1, -2, -4], np.float32).astype(ml_dtypes.float8_e4m3fn)
    weights = levels[RNG.integers(0, 8, (16, 64))].view(np.uint8)
    assert stored(weights) == ("table", weights.size * 3 // 8 + 8)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("grid", ["log", "log2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_a_logarithmic_weight_takes_its_codes_scales_and_ratios(
    bits: int, grid: str, transposed: bool
) -> None:
    form = WeightFormat(bits=bits, grid=grid)  # type: ignore[arg-type]
    quantized = quantize_weight(NORMAL, form)
    expanded = quantized.dequantize()
    held = np.ascontiguousarray(expanded.T) if transposed else expanded
    rule, size = stored(held, "fc.weight_log", {"fc": quantized}, gap=3)
    assert rule == "log"
    assert size == NORMAL.size * bits // 8 + 8 * len(NORMAL)


def test_a_square_weight_is_logarithmic_either_way_round() -> None:
    quantized = quantize_weight(NORMAL[:, :24].copy(), WeightFormat(bits=4, grid="log"))
    weight = quantized.dequantize()
    for held in (weight, np.ascontiguousarray(weight.T)):
        assert stored(held, "fc.weight_log", {"fc": quantized})[0] == "log"


def test_a_convolution_and_a_weight_with_one_scale_are_logarithmic_too() -> None:
    kernels = NORMAL.reshape(24, 16, 2, 2)
    for granularity in ("per_channel", "per_tensor"):
        form = WeightFormat(bits=4, grid="log", granularity=granularity)  # type: ignore[arg-type]
        quantized = quantize_weight(kernels, form)
        rule, size = stored(quantized.dequantize(), "c.weight_log", {"c": quantized})
        assert (rule, size) == ("log", kernels.size // 2 + 8 * quantized.scale.size)


def test_a_weight_of_another_model_by_the_same_name_is_not_taken() -> None:
    form = WeightFormat(bits=4, grid="log")
    own, other = quantize_weight(NORMAL, form), quantize_weight(NORMAL[::-1].copy(), form)
    rule, _ = stored(own.dequantize(), "fc.weight_log", {"fc": other})
    assert rule == "table"  # of each channel, by its values


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_by_products_are_those_of_the_graph(bits: int) -> None:
    """The powers of the graph are numpy's; 8 bits have 127 of them in a row."""
    scale = np.abs(RNG.normal(size=200)).astype(np.float32)
    ratio = RNG.uniform(0.05, 0.999, 200).astype(np.float32)
    table = log_table(scale, ratio, bits)
    levels = log_levels(scale.astype(np.float64), ratio.astype(np.float64), bits)
    half = 2 ** (bits - 1)
    assert np.array_equal(levels[:, half:], table)
    assert np.array_equal(levels[:, 1:half], -table[:, :0:-1])


def test_levels_that_round_otherwise_are_not_stored_as_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def off(scale: NDArray[np.float64], ratio: NDArray[np.float64], bits: int) -> object:
        return np.nextafter(log_levels(scale, ratio, bits), np.float32(np.inf))

    quantized = quantize_weight(NORMAL, WeightFormat(bits=4, grid="log"))
    monkeypatch.setattr(expand, "log_levels", off)
    rule, _ = stored(quantized.dequantize(), "fc.weight_log", {"fc": quantized})
    assert rule == "table"


def test_floats_that_float16_holds_take_half() -> None:
    half = NORMAL.astype(np.float16).astype(np.float32)
    assert stored(half) == ("half", half.nbytes // 2)
    odd = half.copy()
    odd[3, 5] = np.float32(1 + 2**-11)  # between two float16
    assert stored(odd) == ("raw", odd.nbytes)


def test_floats_that_bfloat16_holds_take_half() -> None:
    brain = NORMAL.astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(2.0**-60)
    assert stored(brain) == ("bfloat", brain.nbytes // 2)
    odd = brain.copy()
    odd.view(np.uint32)[0, 0] |= 1
    assert stored(odd) == ("raw", odd.nbytes)


def test_a_codebook_for_each_channel_is_found_along_either_axis() -> None:
    books = RNG.normal(size=(24, 16)).astype(np.float32)
    codes = RNG.integers(0, 16, NORMAL.shape)
    weight = np.take_along_axis(books, codes, axis=1)
    wanted = weight.size // 2 + books.nbytes
    assert stored(weight) == ("table", wanted)
    assert stored(np.ascontiguousarray(weight.T)) == ("table", wanted)
    assert stored(weight.astype(np.float16))[0] == "table"


def test_what_repeats_itself_is_deflated_and_random_floats_are_not() -> None:
    mask = np.tril(np.ones((64, 64), np.float32)).cumsum(axis=1).astype(np.float32) / 3
    rule, size = stored(mask)
    assert rule in ("deflate", "table") and size < mask.nbytes / 2
    assert stored(NORMAL) == ("raw", NORMAL.nbytes)


def test_negative_zero_nan_and_infinity_keep_their_bits() -> None:
    odd = np.array([-0.0, 0.0, math.nan, -math.nan, math.inf, 1e-45] * 20, np.float32)
    odd[1::7].view(np.uint32)[:] |= 0x7FC00001  # other NaNs
    stored(odd)
    stored(odd.reshape(4, -1))


KINDS = (np.uint8, np.int8, np.float16, np.float32, np.int64)


@given(data=st.data(), kind=st.sampled_from(KINDS), gap=st.sampled_from((0, 1, 4095)))
@settings(max_examples=80, deadline=None)
def test_any_tensor_is_read_back_and_takes_no_more_than_it_has(
    data: st.DataObject, kind: type[np.generic], gap: int
) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=3, max_side=12))
    few = data.draw(arrays.arrays(kind, data.draw(st.integers(1, 5))))
    picks = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, len(few) - 1)))
    array = few[picks]
    assert stored(array, gap=gap)[1] <= array.nbytes
