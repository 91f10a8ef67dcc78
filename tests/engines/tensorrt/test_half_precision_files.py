"""Half-precision copies are written beside their constants, wherever a user works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.half_precision_files import write_half_precision


def graph_with_weights(folder: Path, name: str) -> None:
    """Write a linear of 64 x 64 weights, and a bias that stays in the graph."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"], "linear"),
            helper.make_node("Add", ["product", "bias"], ["y"], "add"),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.ones(64, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / f"{name}.onnx")


def test_a_users_file_of_the_same_name_is_neither_refused_nor_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, here = (tmp_path / name for name in ("source", "target", "here"))
    for folder in (source, target, here):
        folder.mkdir()
    graph_with_weights(source, "model")
    (here / "model.onnx.data").write_bytes(b"the user's")  # as torch.onnx.export names it
    monkeypatch.chdir(here)
    path = write_half_precision(source, "model", [], target, [], "float16")
    assert (here / "model.onnx.data").read_bytes() == b"the user's"
    assert sorted(file.name for file in target.iterdir()) == ["model.onnx", "model.onnx.data"]
    loaded = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    wanted = onnx.load(source / "model.onnx").graph.initializer
    (weight,) = (numpy_helper.to_array(t) for t in wanted if t.name == "weight")
    assert any(
        value.dtype == np.float16 and np.array_equal(value, weight.astype(np.float16))
        for value in loaded.values()
    )
