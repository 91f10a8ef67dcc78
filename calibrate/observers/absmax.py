"""Observe the largest magnitude of every float tensor that a graph computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph.builder import add_node, constant, constant_array
from .reduce import finite
from .run import Outputs, is_empty

MASK = -1e30  # a value below is a mask, for which float16 has its own lowest number
CONVERTING = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Shape", "Size"})


def observe_absmax(graph: ir.Graph) -> None:
    """Add outputs `TENSOR:absmax_low`, `:absmax_high` and `:shape` of each float computed."""
    axes = constant(graph, "absmax/axes", np.zeros(0, np.int64))
    for value in computed_floats(graph):
        finite_values = finite(graph, value)
        shape = add_node(graph, "Shape", [value], f"{value.name}:shape")
        shape.dtype = ir.DataType.INT64
        graph.outputs.append(shape)
        for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax")):
            name = f"{value.name}:absmax_{kind}"
            found = add_node(graph, op, [finite_values, axes], name, keepdims=0)
            found.dtype, found.shape = ir.DataType.FLOAT, ir.Shape([])
            graph.outputs.append(found)


def keep_absmax(absmax: dict[str, float], outputs: Outputs) -> None:
    """Raise the absmax of tensors by what a run of a graph with observers gave."""
    for name, values in outputs.items():
        tensor, _, kind = name.rpartition(":")
        if kind in ("absmax_low", "absmax_high") and not is_empty(outputs, name):
            # Python's max would lose a NaN.
            absmax[tensor] = float(np.maximum(absmax.get(tensor, 0.0), abs(float(values))))


def computed_floats(graph: ir.Graph) -> list[ir.Value]:
    """Return float tensors that depend on an input, but on no mask unless through a softmax."""
    floats = {v for v in graph.inputs if v.dtype == ir.DataType.FLOAT}
    fixed = set(graph.initializers.values())
    masked = {v for v in fixed if holds_mask(v)}
    computed = []
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        for value in node.outputs:
            if makes_float(node, value, floats):
                floats.add(value)
            if node.op_type != "Softmax" and masked.intersection(inputs):
                masked.add(value)
            if fixed.issuperset(inputs):
                fixed.add(value)
            elif value in floats and value not in masked:
                computed.append(value)
    return computed


def holds_mask(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT or value.const_value is None:
        return False
    array = constant_array(value)
    return bool(array.size) and float(array.min()) < MASK


def makes_float(node: ir.Node, value: ir.Value, floats: set[ir.Value]) -> bool:
    """Return whether a node makes floats.

    Nodes without type information have the type of their first input, or convert.
    """
    if value.dtype is not None:
        return value.dtype == ir.DataType.FLOAT
    if node.op_type in CONVERTING:
        return node.op_type == "DequantizeLinear"
    return node.inputs[0] in floats
