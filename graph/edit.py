"""Change ONNX graphs in place: replace a value, insert behind one, add to a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .builder import constant, constant_array


def producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """Return the node that makes a value if it is of the operator `op`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def node_named(graph: ir.Graph, name: str) -> ir.Node:
    """Return the node of this name."""
    return next(node for node in graph if node.name == name)


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let `value` be read wherever `old` was; an output of the graph keeps its name and type."""
    value.type, value.shape = old.type, old.shape
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}:before"
        value.name = name
    old.replace_all_uses_with(value, replace_graph_outputs=True)


def insert_behind(
    graph: ir.Graph, value: ir.Value, op: str, operand: ir.Value, name: str
) -> ir.Value:
    """Let everyone who reads `value` read `op`(value, operand), which gets its name.

    A site's output is known by its name, be it inside the graph or at its end.
    """
    node = ir.node(op, [value, operand], name=name)
    made = node.outputs[0]
    made.type, made.shape = value.type, value.shape
    maker = value.producer()
    assert maker is not None
    made.name, value.name = value.name, f"{name}:input"
    for user, index in list(value.uses()):
        if user is not node:
            user.replace_input_with(index, made)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = made
    graph.insert_after(maker, node)
    return made


def add_to_bias(
    graph: ir.Graph,
    value: ir.Value,
    prefix: str,
    addition: NDArray[np.float64],
    shape: tuple[int, ...],
) -> None:
    """Add to the constant behind a product, or put a new one of `shape` there.

    New constants are called `prefix`.bias_shifted and `prefix`.bias.
    """
    users = [user for user, _ in value.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not value.is_graph_output():
        index = 1 if users[0].inputs[0] is value else 0
        bias = users[0].inputs[index]
        tensor = None if bias is None else bias.const_value
        if bias is not None and tensor is not None and tensor.size == addition.size:
            before = constant_array(bias).astype(np.float64)
            total = (before.ravel() + addition).astype(np.float32).reshape(before.shape)
            shifted = constant(graph, f"{prefix}.bias_shifted", total)
            users[0].replace_input_with(index, shifted)
            return
    added = constant(graph, f"{prefix}.bias", addition.astype(np.float32).reshape(shape))
    insert_behind(graph, value, "Add", added, f"{prefix}/Add_offset")


def forget_constants(graph: ir.Graph) -> None:
    """Let go of what the initializers of a graph hold, once it is written or serialized.

    A graph refers to itself, so that they would wait for the garbage collector.
    """
    for value in graph.initializers.values():
        value.const_value = None
