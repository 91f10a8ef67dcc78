"""Write GroupNormalization in the form that ONNX Runtime runs fast on a CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Inserter, constant_array
from .edit import remove_dead_nodes, take_over


def expand_group_norms(graph: ir.Graph) -> None:
    """Replace GroupNormalization by InstanceNormalization over groups, then the affine.

    ONNX Runtime has no CPU kernel for the former and runs its function body in eight passes.
    """
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        value, scale, bias = (
            node.inputs[0],
            constant_array(node.inputs[1]),
            constant_array(node.inputs[2]),
        )
        assert value is not None
        groups = node.attributes["num_groups"].as_int()
        epsilon = node.attributes["epsilon"].as_float()
        add = Inserter(graph, node, numbered=True)
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
        take_over(shifted, node.outputs[0])
    remove_dead_nodes(graph)
