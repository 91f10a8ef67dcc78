"""Tests of the EPContext models by which ONNX Runtime opens engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.context_model import context_model, write_context_models
from arvg_trt.engines.tensorrt.targets import Target
from arvg_trt.errors import BundleError
from arvg_trt.runtime.sessions.open import context_path, reference_session
from arvg_trt.runtime.trt_compat import Backend

TARGETS = (Target("rtx3090", 86), Target("rtx4090", 89), Target("rtx5090", 120))
INFO = helper.make_tensor_value_info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a build leaves it: the half-precision copy of a step, and its engine."""
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    past = helper.make_node("Concat", ["past_key.0", "new"], ["present_key.0"], axis=2)
    graph = helper.make_graph(
        [node, past],
        "step",
        [
            INFO("x", TensorProto.FLOAT, ["rows", "t", 4]),
            INFO("past_key.0", TensorProto.FLOAT16, ["rows", 2, "p", 2]),
            INFO("new", TensorProto.FLOAT16, ["rows", 2, "t", 2]),
            INFO("w", TensorProto.FLOAT, [4, 8]),  # an initializer that may be fed is no input
        ],
        [
            INFO("logits", TensorProto.FLOAT, ["rows", "t", 8]),
            INFO("present_key.0", TensorProto.FLOAT16, ["rows", 2, "p + t", 2]),
        ],
        [numpy_helper.from_array(np.ones((4, 8), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"arvg_trt.stride": "16"})
    onnx.save(
        model,
        tmp_path / "step.onnx",
        save_as_external_data=True,
        location="step.onnx.data",
        size_threshold=0,
    )
    (tmp_path / "step.engine").write_bytes(b"a plan")
    return tmp_path


def attributes_of(model: onnx.ModelProto) -> dict[str, object]:
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("com.microsoft", "EPContext")
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def test_a_node_for_tensorrt_for_rtx_is_as_its_provider_writes_it(folder: Path) -> None:
    """The golden values are those of src/onnx_ctx_model_helper.cc of the plug-in 0.5.0."""
    model = context_model(folder / "step.onnx", folder / "step.engine", "tensorrt_rtx", TARGETS)
    partition = b"step_a27fa2bacd5796b8"
    assert attributes_of(model) == {
        "embed_mode": 0,
        "ep_cache_context": b"step.engine",
        "hardware_architecture": b"86 89 120",
        "onnx_model_filename": b"step.onnx",
        "partition_name": partition,
        "ep_sdk_version": b"1.0",
        "ep_context_op_domain": b"com.microsoft",
        "main_context": 0,
        "source": b"NvTensorRTRTXExecutionProvider",
    }
    assert model.graph.node[0].name.encode() == partition
    onnx.checker.check_model(model)


def test_a_node_for_tensorrt_names_its_gpu_and_provider(folder: Path) -> None:
    """Its provider writes embed_mode, ep_cache_context, hardware_architecture and the file name."""
    graph, engine = folder / "step.onnx", folder / "step.engine"
    found = attributes_of(context_model(graph, engine, "tensorrt", TARGETS[:1]))
    assert found["hardware_architecture"] == b"86"
    assert found["source"] == b"TensorrtExecutionProvider"
    assert found["onnx_model_filename"] == b"step.onnx"
    assert (found["embed_mode"], found["ep_cache_context"]) == (0, b"step.engine")
    assert "ep_sdk_version" not in found


def test_ends_shapes_and_metadata_are_those_of_the_copy(folder: Path) -> None:
    model = context_model(folder / "step.onnx", folder / "step.engine", "tensorrt_rtx", TARGETS)
    copy = onnx.load(folder / "step.onnx", load_external_data=False)
    assert list(model.graph.input) == list(copy.graph.input)[:3]
    assert list(model.graph.output) == list(copy.graph.output)
    assert list(model.metadata_props) == list(copy.metadata_props)
    assert list(model.graph.node[0].input) == ["x", "past_key.0", "new"]
    assert list(model.graph.node[0].output) == ["logits", "present_key.0"]
    assert (model.ir_version, model.graph.name) == (10, "step")
    assert [(each.domain, each.version) for each in model.opset_import] == [
        ("", 21),
        ("com.microsoft", 1),
    ]
    assert not model.graph.initializer


def test_a_build_leaves_the_same_bytes_beside_the_same_engine(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "quantized"
    source.mkdir()
    (source / "generator.json").write_text('{"family": "var"}')
    found = []
    for _ in range(2):
        write_context_models(source, folder, ["step"], "tensorrt_rtx", TARGETS)
        found.append((folder / "step_ctx.onnx").read_bytes())
    assert found[0] == found[1]
    assert (folder / "generator.json").read_text() == '{"family": "var"}'
    (folder / "step.engine").write_bytes(b"another plan")
    write_context_models(source, folder, ["step"], "tensorrt_rtx", TARGETS)
    assert (folder / "step_ctx.onnx").read_bytes() != found[0]


@pytest.mark.parametrize(
    ("backend", "provider"),
    [
        ("tensorrt_rtx", "NvTensorRTRTXExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_onnxruntime_takes_the_graph_and_asks_for_the_provider_of_its_source(
    folder: Path, backend: Backend, provider: str
) -> None:
    """No provider here takes the node: types and attributes before that are accepted."""
    graph = onnx.load(folder / "step.onnx")
    for value in (*graph.graph.input, *graph.graph.output):  # of float16, CPU kernels are sought
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(graph, folder / "step.onnx")
    write_context_models(folder, folder, ["step"], backend, TARGETS)
    with pytest.raises(BundleError, match=f"EPContext node generated by '{provider}'"):
        reference_session(context_path(folder / "step.onnx"))
