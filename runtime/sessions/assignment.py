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
# purpose: there it costs nothing. These operators make shapes or may compute with them. CUDA's
# provider has kernels for all of them on tensors of float32, float16, int64 and int32 (its table in
# docs/OperatorKernels.md of microsoft/onnxruntime; without float16 for Range and int64 for
# ReduceProd, which there are positions and products of sizes), so that no tensor is left to the
# CPU for want of one. CUDA's provider runs Shape itself and gives it to the host: what is moved
# are its consumers (GetCpuPreferredNodes in core/framework/fallback_cpu_capability.cc there), in
# exports of this package Concat, Squeeze, Reshape, Mul, Div, Max and Add.
SHAPE_ARITHMETIC = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Max", "Min"),
        *("Mod", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze"),
        *("Sub", "Unsqueeze", "Where"),
    }
)


def misplaced_nodes(
    assigned: Iterable[AssignedSubgraph], placement: Placement
) -> tuple[AssignedNode, ...]:
    """Return the nodes that another provider runs than the one asked for, in the graph's order.

    Beside CUDA's provider, operators that compute with shapes do not count.
    """
    excused = SHAPE_ARITHMETIC if placement.provider == CUDA else frozenset()
    return tuple(
        node
        for subgraph in assigned
        if subgraph.ep_name != placement.provider
        for node in subgraph.get_nodes()
        if node.op_type not in excused
    )


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
