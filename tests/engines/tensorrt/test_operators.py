from __future__ import annotations

from types import ModuleType
from typing import Any

import onnx
import onnx.defs
import onnx.parser
import onnx_ir as ir
import pytest

from arvg_trt.engines.tensorrt.operators import (
    UNKNOWN,
    WITHOUT_KERNEL,
    build_obstacle,
    opset_obstacle,
)

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
# A graph of one node, or what is in front of it, and whether TensorRT for RTX 1.7 builds it.
GRAPHS = {
    "relu": ("g (float[4] x) => (float[4] y) { y = Relu(x) }", True),
    "uint8 at the border": ("g (uint8[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", True),
    "uint8 inside": ("g (uint8[4] x) => (uint8[8] y) { y = Concat<axis = 0>(x, x) }", False),
    "int16": ("g (int16[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", False),
    "string": ("g (string[4] x) => (string[4] y) { y = Identity(x) }", False),
    "bitwise": ("g (int32[4] x) => (int32[4] y) { y = BitwiseNot(x) }", False),
    "no kernel": ("g (float[4] x) => (int64[1, n] y) { y = NonZero(x) }", False),
    "contrib": (
        "g (float[4, 4] x) => (float[4, 4] y) { y = com.microsoft.FusedMatMul(x, x) }",
        False,
    ),
    "constant axes": (
        "g (float[4, 4] x) => (float[4, 1] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }",
        True,
    ),
    "axes as an input": (
        "g (float[4, 4] x, int64[1] a) => (float[4, 1] y) { y = ReduceSum(x, a) }",
        False,
    ),
    "antialias": (
        "g (float[1, 1, 8, 8] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 0.5, 0.5}>"
        ' { y = Resize<mode = "linear", antialias = 1>(x, , s) }',
        False,
    ),
}


def first_node(text: str) -> ir.Node:
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    return next(iter(ir.from_proto(onnx.shape_inference.infer_shapes(model)).graph))


@pytest.mark.parametrize("name", GRAPHS)
def test_an_obstacle_is_named_where_the_builder_refuses(name: str) -> None:
    text, built = GRAPHS[name]
    assert (build_obstacle(first_node(text)) is None) is built


def parser_of(trt: ModuleType) -> tuple[Any, Any, Any]:
    """Return a builder of TensorRT for RTX, an empty network of it, and the network's parser."""
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(log)
    network = builder.create_network()
    return builder, network, trt.OnnxParser(network, log)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_builder_agrees(name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    text, built = GRAPHS[name]
    builder, network, parser = parser_of(trt)
    parsed = parser.parse(onnx.parser.parse_model(f"{HEADER} {text}").SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config) if parsed else None
    assert (plan is not None) is built


def test_the_parser_knows_just_the_operators_that_the_table_does_not_name() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, _, parser = parser_of(trt)
    # Deprecated ones and those of training have no place in a graph that is exported today.
    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    assert {name for name in names if not parser.supports_operator(name)} == UNKNOWN
    assert all(parser.supports_operator(name) for name in WITHOUT_KERNEL)


def test_a_node_with_a_body_has_no_half_precision_copy() -> None:
    text = (
        "g (bool c, float[4] x) => (float[4] y) { y = If(c) <"
        "then_branch = t () => (float[4] a) { a = Relu(x) },"
        "else_branch = e () => (float[4] b) { b = Neg(x) }> }"
    )
    assert "graph of its own" in str(build_obstacle(first_node(text)))


def test_a_blocked_layout_of_onnxruntime_is_not_taken_for_onnx() -> None:
    """The parser builds com.microsoft.nchwc's Conv as ONNX's: other numbers, without a word."""
    node = ir.node("Conv", [None, None], domain="com.microsoft.nchwc")
    assert build_obstacle(node) == "an operator of com.microsoft.nchwc, not of ONNX"


@pytest.mark.parametrize(("opset", "able"), [(18, False), (19, True), (22, True), (23, False)])
def test_opsets_with_a_half_precision_copy(opset: int, able: bool) -> None:
    assert (opset_obstacle(opset) is None) is able
