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

from arvg_trt.calibrate.blocks import block_codes
from arvg_trt.calibrate.formats import QuantizedWeight, quantize_weight
from arvg_trt.calibrate.packed import load_packed, save_packed
from arvg_trt.calibrate.qdq import insert_qdq
from arvg_trt.calibrate.qdq_nodes import SiteWeights
from arvg_trt.runtime.sessions.onnxruntime import OnnxRuntimeSession
from arvg_trt.sites import Site, WeightFormat

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
    save_packed({"site": found}, {"table": turned}, tmp_path / "w.safetensors")
    packed, floats = load_packed(tmp_path / "w.safetensors")
    assert np.array_equal(packed["site"].dequantize(), found.dequantize())
    assert np.array_equal(floats["table"], turned)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_weights_go_to_the_nearest_of_fifteen_points_of_their_block(block: int) -> None:
    weight = gaussian()
    found = quantize_weight(weight, in_blocks(block))
    assert found.scale.shape == (OUTPUTS, INPUTS // block) and (found.scale > 0).all()
    assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(np.float32))
    steps = np.repeat(found.scale.astype(np.float64), block, axis=1)
    assert np.array_equal(found.codes, np.clip(np.rint(weight / steps), -7, 7))
    np.testing.assert_array_equal(found.dequantize(), (found.codes * steps).astype(np.float32))
    assert not found.codes[3].any()


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
        codes, scale = block_codes(weight, 64, given_importance)
        error = codes * scale.astype(np.float64) - weight
        errors.append(float((np.square(error) * importance).sum()))
    assert errors[0] < errors[1]


def test_a_block_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="96 input channels are no multiple of 64"):
        block_codes(np.ones((2, 96), np.float32), 64, None)


def test_smaller_blocks_lose_less_and_take_more_bytes(tmp_path: Path) -> None:
    weight, losses, sizes = gaussian(2), [], []
    for block in (32, 64, 128):
        found = quantize_weight(weight, in_blocks(block))
        path = tmp_path / f"{block}.safetensors"
        save_packed({"site": found}, {}, path)
        again = load_packed(path)[0]["site"]
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


def weight_only(op: str, weight_format: WeightFormat) -> tuple[onnx.ModelProto, QuantizedWeight]:
    proto, site = linear(op)
    chosen = quantize_weight(gaussian(), weight_format)
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
    found = OnnxRuntimeSession(path, optimized=optimized).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


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
