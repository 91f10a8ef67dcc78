"""INT4 weights in blocks: codes, scales, their file and the graph that multiplies with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.half_precision import to_half_precision
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.blockwise import quantize_blocks
from arvg_trt.numerics.gptq import compensate
from arvg_trt.numerics.packing import load_packed_weights, save_packed_weights
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, quantize_weight
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.quantize.qdq.nodes import SiteWeights
from arvg_trt.runtime.sessions.open import open_session

INPUTS, OUTPUTS = 128, 12


def gaussian(seed: int = 0) -> np.ndarray:
    """Inputs of different size, a dead output and a dead block."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.02, (OUTPUTS, INPUTS)) * np.exp(rng.normal(0, 1, INPUTS))
    weight[3] = weight[5, 32:64] = 0
    return weight.astype(np.float32)


def in_blocks(block: int) -> WeightFormat:
    return WeightFormat(bits=4, granularity="per_block", block=block)


def test_a_weight_that_onnx_holds_transposed_packs_like_any_other(tmp_path: Path) -> None:
    turned = np.asfortranarray(gaussian(5))
    found = quantize_weight(turned, in_blocks(32))
    save_packed_weights({"site": found}, {"table": turned}, tmp_path / "w.safetensors")
    packed, floats = load_packed_weights(tmp_path / "w.safetensors")
    assert np.array_equal(packed["site"].dequantize(), found.dequantize())
    assert np.array_equal(floats["table"], turned)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_weights_go_to_the_nearest_of_fifteen_points_of_their_block(block: int) -> None:
    weight = gaussian()
    found = quantize_weight(weight, in_blocks(block))
    assert found.scale.shape == (OUTPUTS, INPUTS // block) and (found.scale > 0).all()
    assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(np.float32))
    steps = np.repeat(found.scale.astype(np.float64), block, axis=1)
    assert np.array_equal(found.q, np.clip(np.rint(weight / steps), -7, 7))
    np.testing.assert_array_equal(found.dequantize(), (found.q * steps).astype(np.float32))
    assert not found.q[3].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 64]))
def test_the_clip_is_no_worse_than_the_largest_weight(seed: int, block: int) -> None:
    weight = np.random.default_rng(seed).laplace(0, 0.1, (3, 128)).astype(np.float32)
    found = quantize_weight(weight, in_blocks(block)).dequantize()
    blocks = weight.reshape(3, -1, block).astype(np.float64)
    top = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = np.rint(blocks / top) * top - blocks
    ours = (found - weight.astype(np.float64)).reshape(blocks.shape)
    # Scales are rounded to float16.
    assert (np.square(ours).sum(axis=2) <= np.square(plain).sum(axis=2) * 1.01).all()


def test_inputs_that_matter_more_lose_less() -> None:
    weight = np.random.default_rng(1).laplace(0, 0.1, (8, 64)).astype(np.float32)
    importance = np.geomspace(1, 1e4, 64)
    errors = []
    for given_importance in (importance, None):
        codes, scale, _ = quantize_blocks(weight, 64, given_importance)
        error = codes * scale.astype(np.float64) - weight
        errors.append(float((np.square(error) * importance).sum()))
    assert errors[0] < errors[1]


def test_a_block_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="96 input channels are no multiple of 64"):
        quantize_blocks(np.ones((2, 96), np.float32), 64, None)


def test_smaller_blocks_lose_less_and_take_more_bytes(tmp_path: Path) -> None:
    weight, losses, sizes = gaussian(2), [], []
    for block in (32, 64, 128):
        found = quantize_weight(weight, in_blocks(block))
        path = tmp_path / f"{block}.safetensors"
        save_packed_weights({"site": found}, {}, path)
        again = load_packed_weights(path)[0]["site"]
        assert again.format == found.format
        assert np.array_equal(again.dequantize(), found.dequantize())
        losses.append(float(np.square(found.dequantize() - weight).sum()))
        sizes.append(path.stat().st_size)
    assert losses == sorted(losses)
    # Half a byte a weight and two a scale.
    assert sizes[0] - sizes[1] == pytest.approx(OUTPUTS * 2 * 2, abs=16)
    assert sizes[2] < WEIGHTS_BYTES + 400


WEIGHTS_BYTES = OUTPUTS * INPUTS // 2


def linear(op: str) -> tuple[onnx.ModelProto, Site]:
    rng = np.random.default_rng(3)
    bias = rng.normal(0, 1, OUTPUTS).astype(np.float32)
    shape = [["n", "t", INPUTS], ["n", INPUTS]][op == "Gemm"]
    held = {"w": gaussian() if op == "Gemm" else gaussian().T.copy(), "b": bias}
    if op == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="linear", transB=1)]
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="linear"),
            helper.make_node("Add", ["m", "b"], ["y"], name="add"),
        ]
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    site = Site(
        name="block.fc",
        graph="step",
        role="fc1",
        op=op,
        node="linear",
        weight="w",
        bias="b",
        input="x",
        output="y" if op == "Gemm" else "m",
        weight_shape=held["w"].shape,
        channel_axis=len(shape) - 1,
    )
    return helper.make_model(graph, opset_imports=opset, ir_version=10), site


def weight_only(
    op: str, weight_format: WeightFormat, weight: np.ndarray | None = None
) -> tuple[onnx.ModelProto, QuantizedWeight]:
    proto, site = linear(op)
    chosen = quantize_weight(gaussian() if weight is None else weight, weight_format)
    model = ir.serde.deserialize_model(proto)
    insert_qdq(model.graph, [site], {site.name: SiteWeights(chosen)})
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made, chosen


@pytest.mark.parametrize("optimized", [False, True], ids=["reference", "fast"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("block", [32, 128, None], ids=["int4-32", "int4-128", "int8"])
def test_the_product_is_that_of_the_rounded_weight_with_the_whole_input(
    tmp_path: Path, block: int | None, op: str, optimized: bool
) -> None:
    """The fast session too: ONNX Runtime's own default would round the input to 8 bits."""
    made, chosen = weight_only(op, in_blocks(block) if block else WeightFormat(bits=8))
    path = tmp_path / "g.onnx"
    onnx.save(made, path)
    x = np.random.default_rng(4).normal(0, 3, (5, 9, INPUTS)[op == "Gemm" :]).astype(np.float32)
    bias = np.random.default_rng(3).normal(0, 1, OUTPUTS).astype(np.float32)
    wanted = x.astype(np.float64) @ chosen.dequantize().T.astype(np.float64) + bias
    found = open_session(path, optimized=optimized).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


def snr_db(weight: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the SQNR of each row, in float64."""
    wide = weight.astype(np.float64)
    noise = np.square(found.astype(np.float64) - wide).sum(axis=1)
    return 10 * np.log10(np.square(wide).sum(axis=1) / noise)


@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-9, 1e-30, 1e7])
def test_weights_of_any_size_keep_four_bits(size: float, tmp_path: Path) -> None:
    """Gates start at 1e-5, where float16 has no scales left."""
    weight = np.random.default_rng(6).normal(0, 1, (OUTPUTS, INPUTS))
    plain = quantize_weight(weight.astype(np.float32), in_blocks(32))
    tiny = (weight * size).astype(np.float32)
    found = quantize_weight(tiny, in_blocks(32))
    assert plain.factor is None and found.factor is not None
    assert np.array_equal(np.frexp(found.factor)[0], np.full(OUTPUTS, 0.5))
    assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(np.float32))
    assert (found.scale >= 2.0**-14).all()
    assert (snr_db(tiny, found.dequantize()) > snr_db(weight, plain.dequantize()) - 0.1).all()
    save_packed_weights({"site": found}, {}, tmp_path / "w.safetensors")
    again, others = load_packed_weights(tmp_path / "w.safetensors")
    assert np.array_equal(again["site"].dequantize(), found.dequantize()) and not others


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-12, 6), st.floats(-12, 6))
def test_rows_of_different_sizes_do_not_share_their_fate(
    seed: int, low: float, high: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (6, 64)) * 10.0 ** np.array([low, high, low, 0, high, 0])[:, None]
    found = quantize_weight(rows.astype(np.float32), in_blocks(32)).dequantize()
    assert (snr_db(rows, found) > 15).all()


def test_a_small_block_of_large_inputs_counts_by_what_it_adds_to_the_output() -> None:
    rng = np.random.default_rng(7)
    weight = rng.normal(0, 1e-3, (4, 64)).astype(np.float32)
    weight[:, 32:] *= 1e-2
    importance = np.repeat([1.0, 1e4], 32)
    found = quantize_weight(weight, in_blocks(32), importance).dequantize()
    weighted = weight * np.sqrt(importance)
    assert (snr_db(weighted, found * np.sqrt(importance)) > 15).all()
    # Without its inputs, it is nothing beside the rest of its row: no factor is spent on it.
    weight[:, 32:] *= 1e-5
    weight[:, :32] *= 100
    assert quantize_weight(weight, in_blocks(32)).factor is None


@pytest.mark.parametrize("optimized", [False, True], ids=["reference", "fast"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_the_product_of_tiny_weights_is_not_zero(tmp_path: Path, op: str, optimized: bool) -> None:
    weight = gaussian()
    weight[::2] *= np.float32(1e-6)
    made, chosen = weight_only(op, in_blocks(32), weight)
    path = tmp_path / "g.onnx"
    onnx.save(made, path)
    x = np.random.default_rng(4).normal(0, 3, (5, 9, INPUTS)[op == "Gemm" :]).astype(np.float32)
    bias = np.random.default_rng(3).normal(0, 1, OUTPUTS).astype(np.float32)
    wanted = x.astype(np.float64) @ chosen.dequantize().T.astype(np.float64) + bias
    found = open_session(path, optimized=optimized).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())
    # The signal of the small rows is below their bias, so it is compared by the codes.
    live = [k for k in range(OUTPUTS) if weight[k].any()]
    assert (snr_db(weight[live], chosen.dequantize()[live]) > 15).all()


def test_compensated_rounding_keeps_the_factor() -> None:
    rng = np.random.default_rng(8)
    weight = rng.normal(0, 1, (6, 64)).astype(np.float32)
    rows = rng.normal(0, 1, (400, 64)) @ rng.normal(0, 1, (64, 64))
    square = rows.T @ rows
    errors = []
    for size in (np.float32(1), np.float32(2.0**-20)):
        nearest = quantize_weight(weight * size, in_blocks(32))
        made = compensate(weight * size, nearest, square, len(rows))
        wide = (made.dequantize().astype(np.float64) - weight * np.float64(size)) / np.float64(size)
        errors.append(np.einsum("oi,ij,oj->o", wide, square, wide))
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)


def test_the_graph_holds_four_bits_a_weight_in_the_form_that_engines_keep() -> None:
    made, chosen = weight_only("MatMul", in_blocks(64))
    held = {t.name: t for t in made.graph.initializer}
    (dequantize,) = [n for n in made.graph.node if n.op_type == "DequantizeLinear"]
    codes, scale = (held[name] for name in dequantize.input)
    assert codes.data_type == TensorProto.INT4 and list(codes.dims) == [INPUTS, OUTPUTS]
    assert len(codes.raw_data) == WEIGHTS_BYTES
    assert np.array_equal(numpy_helper.to_array(scale), chosen.scale.T)
    attributes = {a.name: a.i for a in dequantize.attribute}
    assert attributes == {"axis": 0, "block_size": 64}


def test_the_half_twin_of_tiny_weights_keeps_them(tmp_path: Path) -> None:
    """Their factor is a power of two, which float16 has down to 2^-24."""
    weight = (gaussian() * np.float32(1e-5)).astype(np.float32)
    made, chosen = weight_only("MatMul", in_blocks(32), weight)
    names = {n.op_type: n for n in made.graph.node}
    made.graph.output[0].name = names["Mul"].output[0]
    del made.graph.node[list(made.graph.node).index(names["Add"])]
    path = tmp_path / "twin.onnx"
    onnx.save(to_half_precision(made), path)
    x = np.random.default_rng(4).normal(0, 3, (5, 9, INPUTS)).astype(np.float32)
    wanted = x.astype(np.float64) @ chosen.dequantize().T.astype(np.float64)
    (found,) = open_session(path, optimized=False).run({"x": x}).values()
    assert np.abs(wanted).max() < 1e-3
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
