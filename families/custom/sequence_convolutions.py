"""Write convolutions over one axis, as of sound or time series, as those of images of height 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...graph.builder import constant
from ...graph.passes import ensure, require
from .rewrites import array_of, change_constant, insert_before, is_float_constant

# These operators work element by element, so a Squeeze may move from one side to the other.
ELEMENTWISE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"),
    *("Softplus", "Softsign", "Erf", "Gelu", "Mish", "Swish", "Abs", "Neg", "Exp", "Sqrt", "Clip"),
    "Identity",
)
BY_CHANNEL = ("BatchNormalization",)
AXES_ARE_INPUTS = 13  # opset from which Squeeze and Unsqueeze read their axes


class SequenceConvolutionsPass(ir.passes.InPlacePass):
    """Write convolutions over one axis as those of images of height 1.

    TensorRT makes the same INT8 layers of both forms, and every later stage knows the second.
    Squeezes are moved behind what works element by element, and vanish in front of an Unsqueeze.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for an opset whose Squeeze has its axes as an attribute."""
        opset = model.opset_imports.get("", 1)
        require([f"opset {opset} is below {AXES_ARE_INPUTS}"] if opset < AXES_ARE_INPUTS else [])

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        squeezes = [flat_to_image(graph, node) for node in sequence_convolutions(graph)]
        for squeeze in squeezes:
            move_behind(graph, squeeze)
        return ir.passes.PassResult(model, modified=bool(squeezes))

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a convolution over one axis that is left."""
        ensure(
            f"Conv {node.outputs[0].name} is over one axis"
            for node in sequence_convolutions(model.graph)
        )


def sequence_convolutions(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the convolutions over one axis that have a form for images."""
    for node in list(graph):
        if node.op_type == "Conv" and node.domain == "" and is_sequence_convolution(node):
            yield node


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
