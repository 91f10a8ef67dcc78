"""Tensors that `quantize` lists stay in FP32 in the FP16 copy, where they would overflow."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arvg_trt.engines.tensorrt.half_precision import to_half_precision
from arvg_trt.quantize.facts import OverflowTensor
from arvg_trt.quantize.overflow import fp32_nodes


def widening() -> onnx.ModelProto:
    """x -> times 4000 -> times 0.001 -> linear: the middle is beyond float16 for x above 16."""
    held = {
        "up": np.array([4000], np.float32),
        "down": np.array([0.001], np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "up"], ["wide"], name="block/Mul"),
            helper.make_node("Mul", ["wide", "down"], ["near"], name="block/Mul_1"),
            helper.make_node("MatMul", ["near", "w"], ["y"], name="block.fc"),
        ],
        "case",
        [info("x", TensorProto.FLOAT, [2, 4])],
        [info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_listed_nodes_are_those_that_the_graph_has_and_keep_the_copy_finite() -> None:
    nodes = ("block/Mul", "block/Mul_1", "elsewhere")
    listed = [OverflowTensor(graph="full", tensor="wide", max=8e4, nodes=nodes)]
    model = widening()
    kept = fp32_nodes(listed, model)
    assert kept == ["block/Mul", "block/Mul_1"]
    x = np.full((2, 4), 20, np.float32)
    found = {}
    for name, nodes in (("blind", []), ("told", kept)):
        # ONNX Runtime's CPU keeps float32 between such nodes, and would not overflow.
        converted = ReferenceEvaluator(to_half_precision(model, keep_fp32=nodes))
        with np.errstate(over="ignore", invalid="ignore"):
            (found[name],) = converted.run(None, {"x": x})
    assert not np.isfinite(found["blind"]).any()
    np.testing.assert_allclose(found["told"], 80.0, rtol=1e-3)


def test_without_a_list_nothing_is_kept() -> None:
    assert fp32_nodes([], widening()) == []
