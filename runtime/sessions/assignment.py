"""Compare the provider that runs each node of a session with the one that was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from .placement import CUDA, Placement


class AssignedNode(Protocol):
    """Name a node as ONNX Runtime's `OrtEpAssignedNode` does."""

    @property
    def name(self) -> str: ...

    @property
    def op_type(self) -> str: ...


class AssignedSubgraph(Protocol):
    """List the nodes that one provider runs, as ONNX Runtime's `OrtEpAssignedSubgraph` does."""

    @property
    def ep_name(self) -> str: ...

    def get_nodes(self) -> Sequence[AssignedNode]: ...


# ONNX Runtime leaves arithmetic on shapes, a few integers, to the CPU beside CUDA's provider on
# purpose: there it costs nothing. These operators make or take nothing but shapes.
OF_SHAPES = frozenset({"Shape", "Size", "ConstantOfShape", "Range"})
# These do so too, or compute on tensors: they count unless they stand among operators of shapes.
MAY_BE_OF_SHAPES = frozenset(
    {
        *("Add", "Cast", "Concat", "Div", "Equal", "Gather", "Max", "Min", "Mod", "Mul"),
        *("ReduceProd", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)


def misplaced_nodes(
    assigned: Iterable[AssignedSubgraph], placement: Placement
) -> tuple[AssignedNode, ...]:
    """Return the nodes that another provider runs than the one asked for, in the graph's order.

    Beside CUDA's provider, arithmetic on shapes does not count: operators of shapes, and what may
    be such where the CPU runs at least one operator of shapes and nothing that is surely none.
    """
    nodes = tuple(
        node
        for subgraph in assigned
        if subgraph.ep_name != placement.provider
        for node in subgraph.get_nodes()
    )
    kinds = {node.op_type for node in nodes}
    if placement.provider == CUDA and kinds & OF_SHAPES and kinds <= OF_SHAPES | MAY_BE_OF_SHAPES:
        return ()
    return nodes


def fallback_text(nodes: Sequence[AssignedNode], placement: Placement) -> str | None:
    """Return one line on nodes that do not run where they were to; None if there are none."""
    if not nodes:
        return None
    first = nodes[0]
    count = f"{len(nodes)} node{'s'[: len(nodes) > 1]}"
    return (
        f"{count} of the graph would run on the CPU instead of {placement.text}, first "
        f"{first.name or 'one without a name'} ({first.op_type})"
    )
