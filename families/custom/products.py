"""Classify the products of a custom graph, and find which products lie around each."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ...export.passes.linears import weight_of
from ...export.passes.naming import SITE_OPS
from ...export.sites import ATTENTION

SCORES, VALUES, PRODUCT = "bmm_qk", "bmm_pv", "bmm"
# These operators read a tensor's shape and not its values.
SHAPE_OPS = ("Shape", "Size")
RANDOM_OPS = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
)
RECURRENT_OPS = ("LSTM", "GRU", "RNN")
# Operators of other domains that compute products.
FOREIGN_PRODUCTS = (
    *SITE_OPS,
    *("Attention", "FusedConv", "FusedGemm", "FusedMatMul", "GroupQueryAttention"),
    *("MultiHeadAttention", "NhwcFusedConv"),
)
UNKNOWN_RANK = "the rank of its input is unknown"


def is_product(node: ir.Node) -> bool:
    """Return whether a node is ONNX's own Conv, ConvTranspose, MatMul or Gemm."""
    return node.op_type in SITE_OPS and node.domain == ""


def is_listed(node: ir.Node) -> bool:
    """Return whether a node computes products of any kind: a site, or one with a reason."""
    if node.domain != "":
        return node.op_type in FOREIGN_PRODUCTS
    return node.op_type in (*SITE_OPS, "Einsum", "Attention", *RECURRENT_OPS)


def foreign_reason(node: ir.Node) -> str | None:
    """Return why a listed node is no convolution or linear of ONNX, None if it may be one."""
    if node.domain != "":
        return f"it is {node.domain}::{node.op_type}, no operator of ONNX"
    if node.op_type in RECURRENT_OPS:
        return f"engines compute an {node.op_type} in one kernel of floats"
    if node.op_type == "Attention":
        return ATTENTION
    if node.op_type == "Einsum":
        equation = node.attributes.get_string("equation", "")
        return f"the Einsum {equation} is no product of an activation's last axis with a matrix"
    return None


def obstacle(node: ir.Node) -> str | None:
    """Return why a product cannot be quantized, None if it can."""
    reason = foreign_reason(node)
    if reason is not None:
        return reason
    if node.op_type in ("MatMul", "Gemm"):
        if is_activation_product(node):
            softmax = attention_role(node) != PRODUCT
            return ATTENTION if softmax else "a product of two activations"
        reason = not_a_linear(node)
        x = node.inputs[0]
        if reason is None and (x is None or x.shape is None):
            return UNKNOWN_RANK
        if reason is None and x is not None and x.shape is not None and len(x.shape) < 2:
            return "its input is a vector, without an axis of rows"
        return reason
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "its weight is computed in the graph"
    if node.op_type == "ConvTranspose":
        return "engines have no integer form of a transposed convolution"
    if node.attributes.get_int("group", 1) != 1:
        return "a convolution in groups"
    if weight.const_value.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.const_value.dtype.name.lower()}, not float32"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding depends on the size of its input (auto_pad)"
    if len(weight.const_value.shape) != 4:
        return f"a convolution over {len(weight.const_value.shape) - 2} axes, not one or two"
    return None


def is_activation_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(
        value is not None and value.const_value is None and not is_computed_constant(value)
        for value in node.inputs
    )


def is_computed_constant(value: ir.Value) -> bool:
    """Return whether no input of the graph goes into `value`."""
    visited: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current in visited or current.const_value is not None:
            continue
        visited.add(current)
        node = current.producer()
        if node is None or node.op_type in RANDOM_OPS or has_body(node):
            return False
        stack += [v for v in node.inputs if v is not None]
    return True


def in_body(operator: str) -> str:
    """Return why a product in a graph of an If, Loop or Scan is left as it is."""
    return f"it is in the body of a node {operator}"


def bodies(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """Yield (node, its graph) for every node outside and in bodies that runs graphs."""
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield node, attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from ((node, body) for body in attribute.as_graphs())


def has_body(node: ir.Node) -> bool:
    """Return whether a node runs graphs of its own, as If and Loop do.

    Such graphs read outer values too.
    """
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attributes.values())


def before(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nearest products that a product's input, or second operand, is computed from."""
    visited: set[ir.Node] = set()
    stack = [value for value in node.inputs if value is not None]
    while stack:
        producer = stack.pop().producer()
        if producer is None or producer in visited or producer.op_type in SHAPE_OPS:
            continue
        visited.add(producer)
        if is_product(producer):
            yield producer
        else:
            stack += [value for value in producer.inputs if value is not None]


def behind(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nearest products that a product's output goes into."""
    visited: set[ir.Node] = set()
    stack = list(node.outputs[0].consumers())
    while stack:
        user = stack.pop()
        if user in visited or user.op_type in SHAPE_OPS:
            continue
        visited.add(user)
        if is_product(user):
            yield user
        else:
            stack += [u for value in user.outputs for u in value.consumers()]


def value_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return who reads the values of a tensor, and as which input."""
    return [(use.node, use.idx) for use in value.uses() if use.node.op_type not in SHAPE_OPS]


def attention_role(node: ir.Node) -> str:
    """Return the role of a product of activations, by the softmax in front or behind."""
    if reaches_softmax(node, forward=False):
        return VALUES
    return SCORES if reaches_softmax(node, forward=True) else PRODUCT


def reaches_softmax(node: ir.Node, *, forward: bool) -> bool:
    """Return whether a Softmax lies between a product and the next one.

    With `forward` the next one behind, else in front of its left operand.
    """
    visited: set[ir.Node] = set()
    start = node.outputs[0] if forward else node.inputs[0]
    stack = [start] if start is not None else []
    while stack:
        value = stack.pop()
        for neighbour in value.consumers() if forward else [value.producer()]:
            if (
                neighbour is None
                or neighbour in visited
                or neighbour.op_type in SHAPE_OPS
                or is_product(neighbour)
            ):
                continue
            visited.add(neighbour)
            if neighbour.op_type == "Softmax":
                return True
            stack += [
                v for v in (neighbour.outputs if forward else neighbour.inputs) if v is not None
            ]
    return False


def not_a_linear(node: ir.Node) -> str | None:
    """Return why a MatMul or Gemm is no linear x W + b with constant float32 W, None if it is."""
    left, right = node.inputs[0], node.inputs[1]
    if left is not None and left.const_value is not None:
        return "its constant is on the left"
    weight = weight_of(node)
    if weight is None or right is None:
        return "its weight is computed in the graph"
    tensor = weight.const_value
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name.lower()}, not float32"
    if len(tensor.shape) != 2:
        return f"the shape of its weight is {list(tensor.shape.numpy())}, no matrix"
    transpose = right.producer()
    if transpose is not None:
        perm = transpose.attributes.get_ints("perm", [1, 0])
        if node.op_type == "Gemm" or list(perm) != [1, 0]:
            return "its weight is computed in the graph"
    if node.op_type == "Gemm":
        plain = all(node.attributes.get_float(k, 1.0) == 1.0 for k in ("alpha", "beta"))
        if not plain or node.attributes.get_int("transA", 0) != 0:
            return "it is a Gemm with a factor (beta) on a bias that is computed in the graph"
    return None
