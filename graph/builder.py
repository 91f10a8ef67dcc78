"""Add nodes and constants to a graph; no other module does it in another way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, value: NDArray[Any] | np.generic) -> ir.Value:
    """Register an initializer of this name and content."""
    array = np.asarray(value)
    # `ir.tensor` first finds out what kind of value it is: a tenth of the time of `quantize`.
    tensor = ir.Tensor(array, name=name)
    made = ir.Value(name=name, const_value=tensor)
    made.shape = ir.Shape(array.shape)
    made.dtype = tensor.dtype
    graph.register_initializer(made)
    return made


def constant_array(value: ir.Value | None) -> NDArray[Any]:
    """Return the content of an initializer."""
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def add_node(
    graph: ir.Graph, op: str, inputs: Sequence[ir.Value], output: str, **attributes: int
) -> ir.Value:
    """Add a node at the graph's end, called `output`/`op`; returns its output."""
    node = ir.node(op, inputs, attributes, name=f"{output}/{op}")
    node.outputs[0].name = output
    graph.append(node)
    return node.outputs[0]


class Inserter:
    """Add nodes in front of `before`, called `prefix`/OP or, where `numbered`, `prefix`/OP_ort1.

    Constants are called `prefix`.LABEL, with `ort_` in front of the label where `numbered`.
    """

    def __init__(
        self, graph: ir.Graph, before: ir.Node, prefix: str = "", *, numbered: bool = False
    ) -> None:
        self.graph = graph
        self.before = before
        self.prefix = prefix or str(before.name)
        self._numbered = numbered
        self._count = 0

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of the standard domain; returns its output."""
        return self.of_domain("", op, inputs, attributes)

    def of_domain(
        self,
        domain: str,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Add a node of another domain; returns its output."""
        self._count += 1
        name = f"{self.prefix}/{op}" + (f"_ort{self._count}" if self._numbered else "")
        node = ir.node(op, inputs, attributes, domain=domain, name=name)
        node.outputs[0].name = f"{name}:0"
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, label: str, value: NDArray[Any] | np.generic) -> ir.Value:
        """Register an initializer named after the prefix."""
        kind = "ort_" if self._numbered else ""
        return constant(self.graph, f"{self.prefix}.{kind}{label}", value)
