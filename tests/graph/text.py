"""Graphs written as ONNX text, for tests of passes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from arvg_trt.export.passes.naming import CLASSES, NAME_SCOPES

HEADER = '<ir_version: 10, opset_import: ["" : {opset}]>\n'


def graph_of(text: str, opset: int = 21, **constants: NDArray[np.generic]) -> ir.Model:
    """Return the model of `g (inputs) => (outputs) { nodes }`; `constants` are its initializers.

    The values of a constant that the text declares may be given here as well.
    """
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def made_by(model: ir.Model, **paths: str) -> ir.Model:
    """Say, as the dynamo exporter does, which module made each node, by the node's name."""
    for node in model.graph:
        path = paths.get(str(node.name))
        if path is not None:
            linear = node.op_type in ("Gemm", "MatMul")
            call = "aten.linear.default" if linear else "aten.other.default"
            node.metadata_props[NAME_SCOPES] = repr(["", path, "call_1"])
            node.metadata_props[CLASSES] = repr(["Module", call])
    return model


def written(model: ir.Model) -> bytes:
    """Return the bytes of the file that the model would be, with constants and types by name.

    Their order means nothing, and the library's shape inference moves large constants to the end.
    """
    proto = ir.to_proto(model)
    for entries in (proto.graph.initializer, proto.graph.value_info):
        entries.sort(key=lambda entry: entry.name)
    return proto.SerializeToString(deterministic=True)


def operators(model: ir.Model) -> list[str]:
    """Return the operators of the nodes, in order."""
    return [node.op_type for node in model.graph]


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    """Return normal numbers of a seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(model: ir.Model, **feeds: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Return what ONNX Runtime computes, without rewriting the graph itself."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_same_after(
    rewrite: ir.passes.InPlacePass, model: ir.Model, **feeds: NDArray[np.generic]
) -> None:
    """Run a pass that changes the model and not what it computes, up to 1e-6 of the largest."""
    before = run(model, **feeds)
    assert rewrite(model).modified
    onnx.checker.check_model(ir.to_proto(model))
    after = run(model, **feeds)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-6 * np.abs(value).max())
