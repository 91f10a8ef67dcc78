"""Infer the sizes of a graph's tensors where the sizes of its inputs are known, node by node.

ONNX's own inference of whole graphs ends at a Reshape whose shape is computed, as exporters and
converters write them. Here what is computed from sizes alone is evaluated on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...]
MOST_ELEMENTS = 1024  # of a tensor that is evaluated: shapes, axes and scales, never activations
# Operators whose sizes ONNX does not infer, though their output has those of the first input.
SAME_AS_INPUT = ("GroupNormalization",)
# What functions of onnx raise of a node that they cannot judge.
UNJUDGED = (
    *(KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError),
    *(ArithmeticError, onnx.shape_inference.InferenceError),
)


def infer_sizes(
    proto: onnx.ModelProto, inputs: Mapping[str, Shape], said: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes of all tensors that follow from those of the inputs.

    `said` are shapes that the graph itself has, for nodes that ONNX knows nothing of. The graph
    may lack its weights: only small tensors that lie in it are read.
    """
    graph = proto.graph
    types: dict[str, TypeProto] = {value.name: value.type for value in graph.value_info}
    types |= {value.name: value.type for value in (*graph.input, *graph.output)}
    known = {each.name: tuple(each.dims) for each in graph.initializer} | dict(inputs)
    types |= {
        each.name: helper.make_tensor_type_proto(each.data_type, tuple(each.dims))
        for each in graph.initializer
    }
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer if small(each)}
    for name, size in inputs.items():
        types[name] = sized(types[name], size)
    opsets = {each.domain: each.version for each in proto.opset_import}
    for node in graph.node:
        computed = evaluated(node, known, values, opsets)
        if computed is None:
            found = inferred(node, types, values, proto)
        else:
            values |= computed
            found = {
                name: helper.make_tensor_type_proto(
                    helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in computed.items()
            }
        for name in filter(None, node.output):
            kind = found.get(name)
            shape: Shape | None = None if kind is None else concrete(kind)
            if shape is None and name in said:
                shape = said[name]
                kind = sized(kind or types[name], shape)
            if shape is not None and kind is not None:
                known[name], types[name] = shape, kind
            else:
                types.pop(name, None)
    return known


def evaluated(
    node: onnx.NodeProto,
    known: Mapping[str, Shape],
    values: Mapping[str, NDArray[np.generic]],
    opsets: Mapping[str, int],
) -> dict[str, NDArray[np.generic]] | None:
    """Return the outputs of a node that computes with sizes alone; None of any other."""
    feeds = {name: values[name] for name in node.input if name in values}
    if node.op_type == "Shape" and node.input[0] in known:
        # Its input is an activation, whose values do not matter: an array without memory.
        feeds = {node.input[0]: np.broadcast_to(np.float32(0), known[node.input[0]])}
    elif any(name and name not in values for name in node.input) or node.domain not in (
        "",
        "ai.onnx",
    ):
        return None
    if any(each.type in (each.GRAPH, each.GRAPHS) for each in node.attribute):
        return None
    inputs, outputs = (
        [helper.make_empty_tensor_value_info(name) for name in names]
        for names in (feeds, filter(None, node.output))
    )
    one = helper.make_graph([node], node.op_type, inputs, outputs)
    imports = [helper.make_opsetid("", opsets.get("", 1))]
    try:
        run = ReferenceEvaluator(helper.make_model(one, opset_imports=imports))
        found = [np.asarray(value) for value in run.run(None, feeds)]
    except UNJUDGED:
        return None
    if any(value.size > MOST_ELEMENTS for value in found):
        return None
    return dict(zip(filter(None, node.output), found, strict=True))


def inferred(
    node: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    values: Mapping[str, NDArray[np.generic]],
    proto: onnx.ModelProto,
) -> dict[str, TypeProto]:
    """Return the types of a node's outputs that ONNX's rules give.

    The node is judged in a graph of its own, so that operators which ONNX defines by others are
    inferred through these.
    """
    read = dict.fromkeys(name for name in node.input if name)
    if not types.keys() >= read.keys():
        return {}
    if node.op_type in SAME_AS_INPUT:
        return {node.output[0]: types[node.input[0]]}
    graph = helper.make_graph(
        [node],
        node.op_type,
        [helper.make_value_info(name, types[name]) for name in read if name not in values],
        [],
        [numpy_helper.from_array(values[name], name) for name in read if name in values],
    )
    one = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        found = onnx.shape_inference.infer_shapes(one, data_prop=True).graph
    except UNJUDGED:
        return {}
    return {value.name: value.type for value in found.value_info}


def small(tensor: TensorProto) -> bool:
    """Return whether a tensor has few elements that lie in the graph's own file."""
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    return tensor.data_location != TensorProto.EXTERNAL and elements <= MOST_ELEMENTS


def sized(kind: TypeProto, shape: Shape) -> TypeProto:
    """Return a tensor's type with these sizes."""
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, shape)


def concrete(kind: TypeProto) -> Shape | None:
    """Return the shape of a type; None where a size is unknown."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    return (
        tuple(dim.dim_value for dim in dims) if all(d.HasField("dim_value") for d in dims) else None
    )
