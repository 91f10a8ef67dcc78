"""Files as they are read: dimensions, functions and the opset."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .models import WIDTH, exported, random, small_graph

W = WIDTH


def test_a_question_mark_names_no_dimension(tmp_path: Path) -> None:
    """TensorRT takes two dimensions of one name for equal, and the file's are not."""
    path = small_graph(
        tmp_path / "g.onnx",
        [("Conv", ["x", "w"], "y", {})],
        {"w": random(0, 4, 3, 1, 1)},
        x=("n", 3, "?", "?"),
    )
    model, _ = exported(path)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    assert [getattr(d, "value", d) for d in shape] == ["n", 3, None, None]


def test_local_functions_are_inlined_before_the_opset_is_raised(tmp_path: Path) -> None:
    function = helper.make_function(
        "local",
        "Halve",
        ["a"],
        ["o"],
        [
            helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1], keepdims=1),
            helper.make_node("Sub", ["a", "m"], ["o"]),
        ],
        [helper.make_opsetid("", 13)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Halve", ["x"], ["h"], domain="local"),
            helper.make_node("MatMul", ["h", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 10])],
        [numpy_helper.from_array(random(0, W, 10), "w")],
    )
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("local", 1)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "g.onnx")
    read, sites = exported(tmp_path / "g.onnx")
    assert not read.functions and [s.excluded for s in sites.values()] == [None]


def test_large_weights_do_not_pass_the_opset_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf ends at 2 GB, a file with external data does not."""
    from arvg_trt.families.custom import load as own_load

    path = small_graph(
        tmp_path / "g.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": random(0, W, 64)}, opset=17
    )
    seen: list[int] = []

    def convert(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return onnx.version_converter.convert_version(model, version)

    monkeypatch.setattr(own_load, "convert_version", convert)
    _, sites = exported(path)
    assert [s.excluded for s in sites.values()] == [None]
    assert max(seen) < 1000 < W * 64 * 4
