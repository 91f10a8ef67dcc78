"""ONNX files whose weights lie where they must not, are cut off, or are no graph at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import ExportError, WorkspaceError
from arvg_trt.graph.io import read_graph
from arvg_trt.runtime.sessions.open import fast_session

from ..command_line import arvg, assert_refused

WEIGHT = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)


def product(**external: object) -> onnx.ModelProto:
    """x [n, 32] @ w [32, 32], whose bytes lie where `external` says."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outside(folder: Path) -> onnx.ModelProto:
    (folder.parent / "outside.bin").write_bytes(WEIGHT.tobytes())
    return product(location="../outside.bin")


def absolute(folder: Path) -> onnx.ModelProto:
    (folder.parent / "outside.bin").write_bytes(WEIGHT.tobytes())
    return product(location=folder.parent / "outside.bin")


def symbolic_link(folder: Path) -> onnx.ModelProto:
    (folder.parent / "outside.bin").write_bytes(WEIGHT.tobytes())
    (folder / "w.bin").symlink_to(folder.parent / "outside.bin")
    return product(location="w.bin")


def hard_link(folder: Path) -> onnx.ModelProto:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    os.link(folder / "w.bin", folder / "other.bin")
    return product(location="w.bin")


def beside(size: int | None, **external: object) -> Callable[[Path], onnx.ModelProto]:
    def make(folder: Path) -> onnx.ModelProto:
        if size is not None:
            (folder / "w.bin").write_bytes(WEIGHT.tobytes()[:size])
        return product(**{"location": "w.bin", **external})

    return make


def sequence(folder: Path) -> onnx.ModelProto:
    model = product()
    model.graph.node[0].output[0] = "made"
    model.graph.node.append(helper.make_node("SequenceConstruct", ["made"], ["y"]))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    )
    return model


def strings(folder: Path) -> onnx.ModelProto:
    model = product()
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.STRING, [1]))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (outside, ("w has its weights in '../outside.bin'", "outside of the graph's folder")),
        (absolute, ("outside.bin", "an absolute path")),
        (symbolic_link, ("w.bin", "a link to outside", "put a copy")),
        (hard_link, ("w.bin", "a hard link", "put a copy")),
        (beside(None), ("w.bin", "missing", "beside the graph")),
        (beside(100), ("w.bin", "too short: 100 bytes, and it needs those to 4,096")),
        (beside(4096, offset=4096), ("too short", "8,192")),
        (beside(4096, length=10), ("takes 10 bytes and needs 4,096",)),
        (beside(4096, length="many"), ("length 'many'",)),
        (beside(4096, offset=-4), ("offset '-4'",)),
        (beside(4096, location=""), ("which is no name",)),
        (beside(4096, location="n" * 300), ("File name too long",)),
        (sequence, ("output y is a sequence", "tensors")),
        (strings, ("input s is a tensor of strings", "tensors")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_graph_that_cannot_be_read_is_refused_in_one_line(
    make: Callable[[Path], onnx.ModelProto], words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "model.onnx"
    file.write_bytes(make(folder).SerializeToString())
    outcome = arvg("export", "onnx", tmp_path / "ws", "--graph", file)
    assert_refused(outcome, 4, "model.onnx", *words)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_graph_is_refused_by_every_reader(share: float, tmp_path: Path) -> None:
    data = product().SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WorkspaceError, match="is not an ONNX model"):
        read_graph(file)
    with pytest.raises(ExportError, match="is not an ONNX model"):
        read_graph(file, error=ExportError)
    assert_refused(arvg("inspect", file), 9, "is not an ONNX model")


def test_weights_beside_the_graph_stay_in_their_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(8) + WEIGHT.tobytes())
    model = product(location="sub/w.bin", offset=8, length=4096)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    found = read_graph(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), WEIGHT)


def test_empty_inputs_at_the_end_of_a_node_are_removed_before_a_session_fuses_it(
    tmp_path: Path,
) -> None:
    model = product()
    model.graph.node[0].output[0] = "made"
    bias = numpy_helper.from_array(np.ones(32, np.float32), "bias")
    scale = numpy_helper.from_array(np.ones(32, np.float32), "scale")
    model.graph.initializer.extend([bias, scale])
    model.graph.node.extend(
        [
            helper.make_node("Add", ["made", "bias"], ["sum"]),
            helper.make_node("LayerNormalization", ["sum", "scale", ""], ["y"], axis=-1),
        ]
    )
    onnx.checker.check_model(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    read = read_graph(tmp_path / "model.onnx", foreign=True)
    assert [len(node.inputs) for node in read.graph] == [2, 2, 2]
    ir.save(read, tmp_path / "read.onnx")
    rows = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    wide = rows.astype(np.float64) @ WEIGHT.astype(np.float64) + 1
    wide -= wide.mean(axis=1, keepdims=True)
    wide /= np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + 1e-5)
    found = fast_session(tmp_path / "read.onnx").run({"x": rows})["y"]
    np.testing.assert_allclose(found, wide, rtol=0, atol=1e-4)
