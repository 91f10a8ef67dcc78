from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from arvg_trt.engines.tensorrt.process import compile_engine
from arvg_trt.engines.tensorrt.reduce import first_true, reduce_failure
from arvg_trt.engines.tensorrt.targets import resolve_target
from arvg_trt.errors import BuildError, OutOfMemory

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
PROFILE = {"x": ((1, 4, 4), (2, 4, 4), (2, 4, 4))}
# Det has no importer. Two branches lead to it and two from it.
TEXT = """g (float[n,4,4] x) => (float[n] y, float[n,4,4] z) {
  a = Relu(x)
  b = Sigmoid(a)
  c = MatMul(b, w)
  d = Tanh(x)
  e = Add(c, d)
  f = Det(e)
  y = Neg(f)
  z = Exp(d)
}"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(f"{HEADER} {TEXT}")
    for node in model.graph.node:
        node.name = f"block.{node.op_type}"
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def refused_by_builder(folder: Path) -> object:
    def refusal(model: onnx.ModelProto) -> BuildError | None:
        onnx.save(model, folder / "part.onnx")
        try:
            compile_engine(
                folder / "part.onnx",
                folder / "part.engine",
                backend="tensorrt_rtx",
                targets=[resolve_target("sm89", "tensorrt_rtx")],
                profiles={},
            )
        except BuildError as error:
            return error
        return None

    return refusal


def test_the_one_node_that_the_builder_lacks_is_left(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    found = reduce_failure(graph, PROFILE, refused_by_builder(tmp_path))
    assert found is not None
    assert (found.nodes, found.of) == (("block.Det",), 8)
    assert "block.Det (Det)" in str(found.refusal)
    onnx.checker.check_model(found.model)
    (value,) = found.model.graph.input
    assert [axis.dim_value for axis in value.type.tensor_type.shape.dim] == [2, 4, 4]


@pytest.mark.parametrize(
    ("needed", "left"),
    [
        ({"MatMul", "Det"}, ["MatMul", "Tanh", "Add", "Det"]),
        ({"Exp"}, ["Exp"]),
        ({"Relu", "Sigmoid"}, ["Relu", "Sigmoid"]),
    ],
)
def test_what_fails_together_is_left_together(
    graph: Path, needed: set[str], left: list[str]
) -> None:
    def refusal(model: onnx.ModelProto) -> BuildError | None:
        held = {node.op_type for node in model.graph.node}
        return BuildError("no kernel") if needed <= held else None

    found = reduce_failure(graph, PROFILE, refusal)
    assert found is not None
    assert [node.op_type for node in found.model.graph.node] == left
    onnx.checker.check_model(found.model)


def test_another_failure_of_a_part_is_not_followed(graph: Path) -> None:
    def refusal(model: onnx.ModelProto) -> BuildError | None:
        held = {node.op_type for node in model.graph.node}
        if {"Relu", "Det"} <= held:
            return BuildError("no kernel for block.Det")
        return BuildError("an output is never computed")

    found = reduce_failure(graph, PROFILE, refusal)
    assert found is not None and "no kernel" in found.refusal.what
    assert {"block.Relu", "block.Det"} <= set(found.nodes)


def test_a_graph_that_builds_has_no_failing_part(graph: Path) -> None:
    assert reduce_failure(graph, PROFILE, lambda model: None) is None


@given(st.integers(1, 200), st.data())
def test_halving_finds_the_first(most: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, most))
    assert first_true(range(1, most + 1), lambda count: count >= first) == first


def test_a_graph_whose_shapes_are_not_known_is_not_said_to_build(tmp_path: Path) -> None:
    """How many values are not zero follows from the values alone."""
    text = "g (float[4] x) => (int64[1,m] y) {\n  y = NonZero(x)\n}"
    onnx.save(onnx.parser.parse_model(f"{HEADER} {text}"), tmp_path / "g.onnx")
    with pytest.raises(BuildError, match=r"the shape of y is not known .*: nothing was tried"):
        reduce_failure(tmp_path / "g.onnx", {}, lambda model: None)


def test_a_builder_that_is_killed_refuses(graph: Path) -> None:
    def refusal(model: onnx.ModelProto) -> OutOfMemory | None:
        held = {node.op_type for node in model.graph.node}
        return OutOfMemory("a subprocess was killed") if "Det" in held else None

    found = reduce_failure(graph, PROFILE, refusal)
    assert found is not None and found.nodes == ("block.Det",)
