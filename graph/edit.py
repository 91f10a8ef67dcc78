"""Small tools for rewriting ONNX graphs in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def take_over(value: ir.Value, old: ir.Value) -> None:
    """`value` is read wherever `old` was; an output of the graph keeps its name and type."""
    value.type, value.shape = old.type, old.shape
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}:before"
        value.name = name
    old.replace_all_uses_with(value, replace_graph_outputs=True)


class Inserter:
    """Adds nodes and initializers in front of `before`, named after it."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph = graph
        self.before = before
        self.count = 0

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.of_domain("", op, inputs, attributes)

    def of_domain(
        self,
        domain: str,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        self.count += 1
        name = f"{self.before.name}/{op}_ort{self.count}"
        node = ir.node(op, inputs, attributes, domain=domain, name=name)
        node.outputs[0].name = f"{name}:0"
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, label: str, value: NDArray[np.generic] | np.generic) -> ir.Value:
        name = f"{self.before.name}.ort_{label}"
        array_value = np.asarray(value)
        made = ir.Value(name=name, const_value=ir.tensor(array_value, name=name))
        made.dtype = ir.DataType.from_numpy(array_value.dtype)
        made.shape = ir.Shape(array_value.shape)
        self.graph.register_initializer(made)
        return made


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Drop nodes and initializers that nothing reads any more."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(out.uses() or out in outputs for out in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
