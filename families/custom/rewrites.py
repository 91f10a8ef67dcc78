"""Rewrite products of a custom graph that are a plain convolution or linear in disguise.

Gemm with alpha, beta or transA, Einsum of a linear, a weight with leading axes of 1, a convolution
over one axis, padding that the size of the input decides: each is written as what later stages
quantize. What cannot be is left, and listed with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import constant

FLOAT = ir.DataType.FLOAT
# These operators work element by element, so a Squeeze may move from one side to the other.
ELEMENTWISE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"),
    *("Softplus", "Softsign", "Erf", "Gelu", "Mish", "Swish", "Abs", "Neg", "Exp", "Sqrt", "Clip"),
    "Identity",
)
BY_CHANNEL = ("BatchNormalization",)


def rewrite_products(graph: ir.Graph) -> None:
    """Apply every rewrite; shapes must be known where they are static."""
    for node in list(graph):
        if node.domain != "":
            continue
        if node.op_type == "Gemm":
            plain_gemm(graph, node)
        elif node.op_type == "Einsum":
            einsum_to_matmul(graph, node)
        elif node.op_type == "MatMul":
            flat_weight(graph, node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            explicit_padding(node)
    sequence_convolutions(graph)


def is_float_constant(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.const_value.dtype == FLOAT
    )


def array_of(value: ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    found: NDArray[np.float32] = value.const_value.numpy()
    return found


def free_name(graph: ir.Graph, name: str) -> str:
    """Return `name`, or the same with a number in front of `.weight` or `.bias`."""
    stem, dot, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        stem, dot, last = name, "", ""
    candidate, number = name, 1
    while candidate in graph.initializers:
        number += 1
        candidate = f"{stem}_{number}{dot}{last}"
    return candidate


def change_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Give a node another constant; one that only it reads keeps its name."""
    value = node.inputs[index]
    assert value is not None
    name = str(value.name)
    if len(list(value.uses())) == 1 and not value.is_graph_output():
        graph.initializers.pop(name)
    else:
        name = free_name(graph, name)
    node.replace_input_with(index, constant(graph, name, np.ascontiguousarray(array)))


def plain_gemm(graph: ir.Graph, gemm: ir.Node) -> None:
    """Write alpha A^T W + beta C with a Transpose in front, and the factors in W and C."""
    alpha, beta = (gemm.attributes.get_float(k, 1.0) for k in ("alpha", "beta"))
    x, weight = gemm.inputs[0], gemm.inputs[1]
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if x is None or not is_float_constant(weight) or is_float_constant(x):
        return
    if bias is not None and beta != 1.0:
        if not is_float_constant(bias):
            return
        wide = array_of(bias).astype(np.float64) * beta
        change_constant(graph, gemm, 2, wide.astype(np.float32))
    gemm.attributes.pop("beta", None)
    if alpha != 1.0:
        assert weight is not None
        wide = array_of(weight).astype(np.float64) * alpha
        change_constant(graph, gemm, 1, wide.astype(np.float32))
    gemm.attributes.pop("alpha", None)
    if gemm.attributes.get_int("transA", 0):
        turned = insert_before(graph, gemm, "Transpose", [x], perm=[1, 0])
        if x.shape is not None:
            turned.shape = ir.Shape(list(reversed(list(x.shape))))
        gemm.replace_input_with(0, turned)
        gemm.attributes.pop("transA")


def einsum_to_matmul(graph: ir.Graph, node: ir.Node) -> None:
    """Write an Einsum of an activation's last axis with a constant matrix as a MatMul."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or len(node.inputs) != 2:
        return
    order = (0, 1) if is_float_constant(node.inputs[1]) else (1, 0)
    x, weight = (node.inputs[k] for k in order)
    x_axes, w_axes = (terms[k] for k in order)
    if x is None or weight is None or is_float_constant(x) or not is_float_constant(weight):
        return
    plain = x_axes.removeprefix("...")
    lead = "..." if x_axes.startswith("...") else ""
    if len(w_axes) != 2 or len(plain) < 1 or len(set(plain + w_axes)) != len(plain) + 1:
        return
    k = plain[-1]
    if k not in w_axes or "." in plain + w_axes:
        return
    n = w_axes.replace(k, "")
    if n in plain or out != lead + plain[:-1] + n:
        return
    array = array_of(weight)
    if w_axes[0] != k:
        node.replace_input_with(order[1], weight)
        change_constant(graph, node, order[1], array.T)
        weight = node.inputs[order[1]]
    product = ir.node("MatMul", [x, weight], name=node.name)
    product.metadata_props.update(node.metadata_props)
    product.meta.update(node.meta)
    replace_node(graph, node, product)


def flat_weight(graph: ir.Graph, node: ir.Node) -> None:
    """Reshape a weight [1, .., 1, K, N] to the matrix [K, N], if the input has as many axes."""
    x, weight = node.inputs[0], node.inputs[1]
    if not is_float_constant(weight) or x is None or x.shape is None:
        return
    assert weight is not None
    array = array_of(weight)
    if array.ndim > 2 and set(array.shape[:-2]) == {1} and len(x.shape) >= array.ndim:
        change_constant(graph, node, 1, array.reshape(array.shape[-2:]))


def explicit_padding(node: ir.Node) -> None:
    """Replace `auto_pad` by numbers, where the size of the input is known or irrelevant.

    With a stride of 1 the padding is the kernel's extent less one, whatever the size.
    """
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    weight = node.inputs[1]
    if kind == "NOTSET" or node.op_type != "Conv" or weight is None or weight.shape is None:
        return
    kernel = [k for k in weight.shape[2:] if isinstance(k, int)]
    if len(kernel) != len(weight.shape) - 2:
        return
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    pads = [0] * (2 * rank)
    if kind != "VALID":
        x = node.inputs[0]
        sizes = [None] * rank if x is None or x.shape is None else list(x.shape[2:])
        for axis, (k, stride, dilation, size) in enumerate(
            zip(kernel, strides, dilations, sizes, strict=True)
        ):
            extent = (k - 1) * dilation + 1
            if stride == 1:
                total = extent - 1
            elif isinstance(size, int):
                total = max(0, (-(-size // stride) - 1) * stride + extent - size)
            else:
                return
            first = total // 2 if kind == "SAME_UPPER" else total - total // 2
            pads[axis], pads[axis + rank] = first, total - first
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def sequence_convolutions(graph: ir.Graph) -> None:
    """Write convolutions over one axis as those of images of height 1.

    TensorRT makes the same INT8 layers of both forms, and every later stage knows the second.
    Squeezes are moved behind what works element by element, and vanish in front of an Unsqueeze.
    """
    squeezes = [
        flat_to_image(graph, node)
        for node in list(graph)
        if node.op_type == "Conv" and node.domain == "" and is_sequence_convolution(node)
    ]
    for squeeze in squeezes:
        move_behind(graph, squeeze)


def is_sequence_convolution(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if not is_float_constant(weight) or node.attributes.get_int("group", 1) != 1:
        return False
    assert weight is not None and weight.const_value is not None
    padded = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    return padded and len(weight.const_value.shape) == 3


def height_axis(graph: ir.Graph) -> ir.Value:
    """Return the constant [2] that Unsqueeze and Squeeze read."""
    name = "sequence.height_axis"
    if name not in graph.initializers:
        constant(graph, name, np.array([2], np.int64))
    return graph.initializers[name]


def flat_to_image(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Write a Conv on [N, C, L] as one on [N, C, 1, L]; return the Squeeze behind it."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    array = array_of(weight)
    change_constant(graph, node, 1, array[:, :, None, :])
    for name, first in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if name in node.attributes:
            held = list(node.attributes.get_ints(name, [1]))
            node.attributes[name] = ir.AttrInt64s(name, [first, *held])
    if "pads" in node.attributes:
        before, after = node.attributes.get_ints("pads", [0, 0])
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, before, 0, after])
    raised = insert_before(graph, node, "Unsqueeze", [x, height_axis(graph)])
    raised.shape = with_height(x.shape)
    node.replace_input_with(0, raised)
    old = node.outputs[0]
    squeeze = ir.node("Squeeze", [old, height_axis(graph)], name=f"{old.name}.Squeeze")
    out = squeeze.outputs[0]
    out.type, out.shape = old.type, old.shape
    for user, index in list(old.uses()):
        if user is not squeeze:
            user.replace_input_with(index, out)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = out
    out.name, old.name = str(old.name), f"{old.name}.image"
    old.shape = with_height(old.shape)
    graph.insert_after(node, squeeze)
    return squeeze


def with_height(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*shape[:2], 1, *shape[2:]])


def move_behind(graph: ir.Graph, squeeze: ir.Node) -> None:
    """Move a Squeeze behind its users as long as each is its only one and works by element."""
    while True:
        out = squeeze.outputs[0]
        image = squeeze.inputs[0]
        users = [user for user, _ in out.uses()]
        for user in users:
            if user.op_type == "Unsqueeze" and user.inputs[1] is squeeze.inputs[1]:
                assert image is not None
                user.outputs[0].replace_all_uses_with(image)
                graph.remove(user, safe=True)
        users = [user for user, _ in out.uses()]
        if not users and not out.is_graph_output():
            graph.remove(squeeze, safe=True)
            return
        if len(users) != 1 or out.is_graph_output() or not passes_height(users[0], out):
            return
        swap(graph, squeeze, users[0])


def passes_height(user: ir.Node, value: ir.Value) -> bool:
    """Return whether a node gives the same on [N, C, 1, L] as on [N, C, L]."""
    if user.domain != "" or user.inputs[0] is not value or len(user.outputs) != 1:
        return False
    if user.graph is not value.graph:
        return False
    return user.op_type in (*ELEMENTWISE, *BY_CHANNEL)


def swap(graph: ir.Graph, squeeze: ir.Node, user: ir.Node) -> None:
    """Swap a Squeeze and its user; what the user made keeps its name."""
    image, made, flat = squeeze.inputs[0], user.outputs[0], squeeze.outputs[0]
    assert image is not None
    user.replace_input_with(0, image)
    graph.remove(squeeze)
    for node, index in list(made.uses()):
        node.replace_input_with(index, flat)
    for index, output in enumerate(graph.outputs):
        if output is made:
            graph.outputs[index] = flat
    flat.type, flat.shape = made.type, made.shape
    name = str(made.name)
    made.name = f"{name}.image"
    flat.name = name
    made.shape = with_height(made.shape)
    squeeze.replace_input_with(0, made)
    graph.insert_after(user, squeeze)


def insert_before(
    graph: ir.Graph, node: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: Sequence[int]
) -> ir.Value:
    """Insert a node in front of another; its output has the type of its input."""
    made = ir.node(op, inputs, attributes, name=f"{node.outputs[0].name}.{op}")
    out = made.outputs[0]
    out.name, out.type = f"{node.outputs[0].name}.{op}", inputs[0].type
    graph.insert_before(node, made)
    return out


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Replace a node of one output by another."""
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    graph.insert_before(old, new)
    name, before.name = before.name, None
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    after.name = name
    graph.remove(old, safe=True)
