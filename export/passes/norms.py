"""Write out group norms over very many values, so that FP32 sums keep their digits.

ONNX Runtime has no kernel for GroupNormalization on a CPU. Its function body adds the values of a
group one after the other: of the 1.3 million of a 512x512 map the sum is off by 1e-4, which a
dozen norms make 2e-3. Means in a row, over each axis by itself, add at most a few thousand values
each and are off by 3e-6.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from torch import nn

from ...graph.builder import Inserter
from ...graph.group_norm import EPSILON
from ...graph.passes import ensure, remove_unused, require
from .naming import IMAGE_RANK, module_path

# Shorter groups keep the operator, which engines fuse, unless `norm_drift` marked them.
LONGEST_GROUP = 2**19
MARK = "drifts_in_onnxruntime"
MULTIPLE = re.compile(r"(?:(\d+)\*)?[a-z]\w*")  # a multiple of the side of a latent map


def marked(module: nn.Module) -> set[str]:
    """Return the paths of the norms that lose digits in ONNX Runtime, as `norm_drift` measured."""
    return {path for path, inner in module.named_modules() if getattr(inner, MARK, False)}


class SplitLongNormsPass(ir.passes.InPlacePass):
    """Write out GroupNormalization over groups above `LONGEST_GROUP`.

    It becomes means in a row, deviation and affine. Those of the modules `drifting` are written out
    too. Only for images [N, C, H, W]. Sizes that are not fixed are taken to be those of a latent
    map of `side` x `side`; without one, nothing is known of them and their norms keep the operator.
    """

    def __init__(self, side: int | None = None, drifting: Collection[str] = ()) -> None:
        super().__init__()
        self.side = side
        self.drifting = frozenset(drifting)

    def _long_norms(self, graph: ir.Graph) -> Iterator[tuple[ir.Node, int, int]]:
        """Yield (norm, channels, groups) of what is to be written out."""
        for node in list(graph):
            if node.op_type != "GroupNormalization":
                continue
            value = node.inputs[0]
            shape = None if value is None else value.shape
            if shape is None or len(shape) != IMAGE_RANK or not isinstance(shape[1], int):
                continue
            height, width = (usual(size, self.side) for size in (shape[2], shape[3]))
            channels, groups = shape[1], node.attributes["num_groups"].as_int()
            long = channels // groups * height * width > LONGEST_GROUP
            if long or module_path(node) in self.drifting:
                yield node, channels, groups

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a long norm whose affine is computed in the graph."""
        require(
            f"{node.name} has an affine that is no constant"
            for node, _, _ in self._long_norms(model.graph)
            if any(value is None or value.const_value is None for value in node.inputs[1:])
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node, channels, groups in self._long_norms(model.graph):
            write_out(model.graph, node, channels, groups)
            modified = True
        modified |= remove_unused(model.graph)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a long norm that keeps the operator."""
        ensure(f"{node.name} is long" for node, _, _ in self._long_norms(model.graph))


def usual(size: int | ir.SymbolicDim, side: int | None) -> int:
    """Return a size, or the value of "16*h" for h = `side`; 0 for an unknown one."""
    if isinstance(size, int):
        return size
    match = MULTIPLE.fullmatch(size.value or "")
    return int(match[1] or 1) * side if match and side is not None else 0


def write_out(graph: ir.Graph, norm: ir.Node, channels: int, groups: int) -> None:
    """Write the norm as (x - mean) / sqrt(variance + epsilon) * scale + bias, x [N, C, H, W].

    Mean and variance of a group are [N, C, 1, 1], equal for its channels.
    """
    value, scale, bias = norm.inputs
    assert value is not None and scale is not None and bias is not None
    epsilon = np.float32(norm.attributes.get_float("epsilon", EPSILON))
    nodes: list[ir.Node] = []
    new = Inserter(graph, norm).constant

    def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{norm.name}/{op}_{len(nodes) + 1}")
        node.outputs[0].name = f"{node.name}:0"
        node.outputs[0].type = value.type
        nodes.append(node)
        return node.outputs[0]

    def mean(x: ir.Value) -> ir.Value:
        for axis in (width, height):
            x = add("ReduceMean", x, axis, keepdims=1)
        of_group = add("ReduceMean", add("Reshape", x, by_group), height, keepdims=1)
        return add("Reshape", add("Expand", of_group, members), by_channel)

    def affine(parameter: ir.Value, label: str) -> ir.Value:
        assert parameter.const_value is not None
        return new(label, parameter.const_value.numpy().reshape(-1, 1, 1))

    height, width = (new(f"axis_{axis}", np.array([axis])) for axis in (2, 3))
    by_group = new("by_group", np.array([0, groups, channels // groups, 1]))
    members = new("members", np.array([1, 1, channels // groups, 1]))
    by_channel = new("by_channel", np.array([0, channels, 1, 1]))
    centred = add("Sub", value, mean(value))
    square = add("Mul", centred, centred)
    deviation = add("Sqrt", add("Add", mean(square), new("epsilon", epsilon)))
    normed = add("Div", centred, deviation)
    scaled = add("Mul", normed, affine(scale, "scale"))
    shifted = add("Add", scaled, affine(bias, "bias"))

    old = norm.outputs[0]
    name = old.name
    for made in (centred, square, normed, scaled, shifted):
        made.shape = old.shape
    graph.insert_before(norm, nodes)
    ir.convenience.replace_all_uses_with(old, shifted, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    shifted.name = name
