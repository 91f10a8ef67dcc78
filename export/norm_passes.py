"""Group norms over very many values, written out so that an FP32 sum of them keeps its digits.

ONNX Runtime has no kernel for GroupNormalization on a CPU. Its function body adds the values of a
group one after the other: of the 1.3 million of a 512x512 map the sum is off by 1e-4, which a
dozen norms make 2e-3. Two means in a row, over rows and then over their means, add at most a few
thousand values each and are off by 3e-6.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .linear_passes import drop_unused

# Shorter groups keep the operator that engines fuse: at 256x256 pixels they are exact enough.
LONGEST_GROUP = 2**19
IMAGE_RANK = 4


def split_long_norms(graph: ir.Graph) -> None:
    """GroupNormalization over groups above `LONGEST_GROUP` -> two-step mean and variance, affine.

    Only for images [N, C, H, W] whose C, H and W are fixed: of others the length is not known.
    """
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        value = node.inputs[0]
        assert value is not None
        sizes = () if value.shape is None else tuple(value.shape)[1:]
        if len(sizes) != IMAGE_RANK - 1 or not all(isinstance(size, int) for size in sizes):
            continue
        channels, height, width = (int(str(size)) for size in sizes)
        groups = node.attributes["num_groups"].as_int()
        rows = channels // groups * height
        if rows * width > LONGEST_GROUP:
            write_out(graph, node, (groups, rows, width), (channels, height, width))
    drop_unused(graph)


def write_out(
    graph: ir.Graph, norm: ir.Node, grouped: tuple[int, ...], image: tuple[int, ...]
) -> None:
    """The norm as (x - mean) / sqrt(variance + epsilon) * scale + bias, x as [N, *grouped]."""
    value, scale, bias = norm.inputs
    assert value is not None and scale is not None and bias is not None
    epsilon = np.float32(norm.attributes["epsilon"].as_float())
    nodes: list[ir.Node] = []

    def constant(label: str, content: np.ndarray | np.generic) -> ir.Value:
        name = f"{norm.name}.{label}"
        tensor = ir.tensor(np.asarray(content), name=name)
        made = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()))
        made.type = ir.TensorType(tensor.dtype)
        graph.register_initializer(made)
        return made

    def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{norm.name}/{op}_{len(nodes) + 1}")
        node.outputs[0].name = f"{node.name}:0"
        node.outputs[0].type = value.type
        nodes.append(node)
        return node.outputs[0]

    def mean(x: ir.Value) -> ir.Value:
        return add("ReduceMean", add("ReduceMean", x, last, keepdims=1), second, keepdims=1)

    def affine(parameter: ir.Value, label: str) -> ir.Value:
        assert parameter.const_value is not None
        return constant(label, parameter.const_value.numpy().reshape(-1, 1, 1))

    second, last = (constant(f"axis_{axis}", np.array([axis])) for axis in (2, 3))
    x = add("Reshape", value, constant("grouped", np.array([0, *grouped])))
    centred = add("Sub", x, mean(x))
    variance = mean(add("Mul", centred, centred))
    deviation = add("Sqrt", add("Add", variance, constant("epsilon", epsilon)))
    normed = add("Div", centred, deviation)
    back = add("Reshape", normed, constant("image", np.array([0, *image])))
    scaled = add("Mul", back, affine(scale, "scale"))
    shifted = add("Add", scaled, affine(bias, "bias"))

    old = norm.outputs[0]
    name, shifted.shape = old.name, old.shape
    for made in (back, scaled):
        made.shape = old.shape
    graph.insert_before(norm, nodes)
    ir.convenience.replace_all_uses_with(old, shifted, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    shifted.name = name
