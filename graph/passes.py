"""Compose passes over whole models in ir-py's contract, and state what each asks and promises.

A pass is an `ir.passes.InPlacePass`: `call` changes a model and says truly whether it did,
`requires` and `ensures` raise the library's errors where a caller or the pass itself is wrong. What
is wrong with a user's file is an ArvgError, raised inside `call`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import ArvgError

IR_VERSION = 10  # of opset 21


class Sequential(ir.passes.Sequential):
    """Run passes in order; an ArvgError stays one, where the library's class would wrap it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        try:
            return super().call(model)
        except ir.passes.PassError as error:
            if isinstance(error.__cause__, ArvgError):
                raise error.__cause__ from None
            raise


def require(problems: Iterable[str]) -> None:
    """Raise PreconditionError with the first problem, if there is one."""
    for problem in problems:
        raise ir.passes.PreconditionError(problem)


def ensure(problems: Iterable[str]) -> None:
    """Raise PostconditionError with the first problem, if there is one."""
    for problem in problems:
        raise ir.passes.PostconditionError(problem)


def remove_unused(graph: ir.Graph) -> bool:
    """Remove nodes, initializers and optional outputs that nothing reads; return if any was there.

    The library's pass wants a model, and does not count the empty inputs and optional outputs that
    it cuts off.
    """
    before = structure(graph)
    initializers = dict(graph.initializers)
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=IR_VERSION))
    for name, value in initializers.items():
        if name not in graph.initializers:
            value.const_value = None  # lists of the library's may still hold the value
    return structure(graph) != before


def remove_dead_nodes(graph: ir.Graph) -> bool:
    """Remove nodes and initializers that nothing reads; return if there were any.

    The library's pass would cut off empty inputs as well, and so change the bytes of
    MatMulIntegerToFloat without a bias.
    """
    before = structure(graph)
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(out.uses() or out in outputs for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value in outputs):
            graph.initializers.pop(name)
    return structure(graph) != before


def structure(graph: ir.Graph) -> tuple[object, ...]:
    """Return nodes, what they read and make, and constants, to be compared after a change.

    Attributes are only counted: passes that change one know it.
    """
    nodes = [(n, n.name, n.inputs, len(n.attributes)) for n in graph.all_nodes()]
    made = [
        (v, v.name, v.dtype, None if v.shape is None else v.shape.dims)
        for n in graph.all_nodes()
        for v in n.outputs
    ]
    return nodes, made, dict(graph.initializers), list(graph.outputs)


class DropEmptyInputsPass(ir.passes.InPlacePass):
    """Remove optional inputs that are named and empty at a node's end: they say nothing.

    ONNX Runtime 1.31 ends with a segmentation fault where it fuses a LayerNormalization that has
    one for its bias. The library drops them with unused nodes alone, which a file keeps at first.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in with_empty_inputs(model):
            held = [k for k, value in enumerate(node.inputs) if value is not None]
            node.resize_inputs(held[-1] + 1 if held else 0)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a node whose last input is empty."""
        ensure(f"the last input of {n.name} is empty" for n in with_empty_inputs(model))


def with_empty_inputs(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes whose last input is empty, in bodies and functions too."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            if node.inputs and node.inputs[-1] is None:
                yield node
