"""Write GroupNormalization in the form that ONNX Runtime runs fast on a CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Inserter, constant_array
from .edit import take_over
from .passes import ensure, remove_dead_nodes

EPSILON = 1e-5  # where a norm does not say it


class ExpandGroupNormsPass(ir.passes.InPlacePass):
    """Replace GroupNormalization by InstanceNormalization over groups, then the affine.

    ONNX Runtime has no CPU kernel for the former and runs its function body in eight passes. One
    whose affine is computed in the graph keeps the operator.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in group_norms(model.graph):
            expand(model.graph, node)
            modified = True
        modified |= remove_dead_nodes(model.graph)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a norm that is left."""
        ensure(f"{node.name} is a GroupNormalization" for node in group_norms(model.graph))


def group_norms(graph: ir.Graph) -> list[ir.Node]:
    """Return the group norms with a constant affine of a graph, without those in bodies."""
    return [
        node
        for node in graph
        if node.op_type == "GroupNormalization"
        and all(value is not None and value.const_value is not None for value in node.inputs[1:])
    ]


def expand(graph: ir.Graph, norm: ir.Node) -> None:
    """Write one norm as Reshape, InstanceNormalization, Reshape, Mul and Add."""
    value, scale, bias = (
        norm.inputs[0],
        constant_array(norm.inputs[1]),
        constant_array(norm.inputs[2]),
    )
    assert value is not None
    groups = norm.attributes["num_groups"].as_int()
    epsilon = norm.attributes.get_float("epsilon", EPSILON)
    add = Inserter(graph, norm, numbered=True)
    grouped = add("Reshape", value, add.constant("groups", np.array([0, groups, -1])))
    normed = add(
        "InstanceNormalization",
        grouped,
        add.constant("one", np.ones(groups, np.float32)),
        add.constant("zero", np.zeros(groups, np.float32)),
        epsilon=epsilon,
    )
    back = add("Reshape", normed, add("Shape", value))
    scaled = add("Mul", back, add.constant("scale", scale.reshape(1, -1, 1, 1)))
    shifted = add("Add", scaled, add.constant("bias", bias.reshape(1, -1, 1, 1)))
    take_over(shifted, norm.outputs[0])
