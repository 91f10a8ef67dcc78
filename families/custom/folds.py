"""Find where a channel scale and shift of a tensor fold for free.

The search walks back from the tensor: dividing x by s and subtracting p is moved to x's producer,
as long as nothing else reads what lies between. Only steps that are exact in real numbers are
taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from ...graph.sites import FoldPart, ProducerFold
from .canonical import NORMS
from .products import value_uses

# f(x / s) = f(x) / s for s > 0
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu")


def find_fold(
    value: ir.Value, axis: int, sites: Collection[ir.Node]
) -> tuple[tuple[str, str] | None, ProducerFold | None]:
    """Return (weight and bias of the norm that makes `value`, None), or (None, producer's parts).

    `axis` is the channel axis. Neither, if anything but the inputs of `sites` reads `value`.
    """
    users = value_uses(value)
    if value.is_graph_output() or any(n not in sites or index != 0 for n, index in users):
        return None, None
    channels = channels_of(users[0][0])
    norm = value.producer()
    if norm is not None and is_norm(norm, value, axis):
        scale, bias = (constant_name(norm, k, channels) for k in (1, 2))
        if scale is not None and bias is not None:
            return (scale, bias), None
    return None, producer_parts(value, axis, channels)


def channels_of(site: ir.Node) -> int:
    """Return the number of input channels of a convolution or linear."""
    weight = site.inputs[1]
    assert weight is not None and weight.const_value is not None
    size = weight.const_value.shape[1 if site.op_type == "Conv" else 0]
    assert isinstance(size, int)
    return size


def producer_parts(value: ir.Value, axis: int, channels: int) -> ProducerFold | None:
    """Return the fold into what makes `value`, None if something in between forbids it."""
    node = value.producer()
    if node is None:
        return None
    if is_norm(node, value, axis):
        return through_norm(node, channels)
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or not is_read_once(weight):
            return None
        shape = weight.const_value.shape.numpy()
        last = value.shape is not None and axis == len(value.shape) - 1
        fits = last and len(shape) == 2 and shape[1] == channels
        return parts([(str(weight.name), 1)], None) if fits else None
    if node.op_type in HOMOGENEOUS:
        inner = behind(node.inputs[0], axis, channels)
        return without_shift(inner)
    if node.op_type == "Add":
        return through_add(node, value, axis, channels)
    if node.op_type == "Mul":
        return through_mul(node, value, axis, channels)
    return None


def behind(value: ir.Value | None, axis: int, channels: int) -> ProducerFold | None:
    """Return `producer_parts` of an inner value, which only one node may read."""
    if value is None or value.is_graph_output() or len(value_uses(value)) != 1:
        return None
    return producer_parts(value, axis, channels)


def through_norm(norm: ir.Node, channels: int) -> ProducerFold | None:
    """Fold into a norm: weight and bias are divided, and the bias takes the shift.

    A bias that cannot be divided, since something else reads it too or the graph computes it,
    leaves no fold: the weight alone would change the sum.
    """
    scale, bias = (constant_name(norm, k, channels) for k in (1, 2))
    has_bias = len(norm.inputs) > 2 and norm.inputs[2] is not None
    if scale is None or (has_bias and bias is None):
        return None
    if bias is None:
        return parts([(scale, 0)], None)
    return parts([(scale, 0), (bias, 0)], (bias, 0))


def through_add(node: ir.Node, value: ir.Value, axis: int, channels: int) -> ProducerFold | None:
    """Fold into x + bias: both are divided, and the bias takes the shift."""
    for inner, index in ((node.inputs[0], 1), (node.inputs[1], 0)):
        bias = vector(node, index, value, axis, channels)
        found = behind(inner, axis, channels) if bias is not None else None
        if bias is not None and found is not None:
            divide = [(part.initializer, part.axis) for part in found.divide]
            return parts([*divide, bias], bias)
    return None


def through_mul(node: ir.Node, value: ir.Value, axis: int, channels: int) -> ProducerFold | None:
    """Fold a scale into the weight of x * weight, or into either operand of x * y."""
    for index in (0, 1):
        weight = vector(node, index, value, axis, channels)
        if weight is not None:
            return parts([weight], None)
    for inner in node.inputs:
        if inner is not None and keeps_channels(inner, axis, channels, value):
            found = without_shift(behind(inner, axis, channels))
            if found is not None:
                return found
    return None


def keeps_channels(inner: ir.Value, axis: int, channels: int, value: ir.Value) -> bool:
    """Return whether `inner` has the rank and channels of `value`, so that none is broadcast."""
    if inner.shape is None or value.shape is None or len(inner.shape) != len(value.shape):
        return False
    return inner.shape[axis] == channels


def vector(
    node: ir.Node, index: int, value: ir.Value, axis: int, channels: int
) -> tuple[str, int] | None:
    """Return the constant of `node` with one number per channel of `value`, and its axis."""
    operand = node.inputs[index]
    if operand is None or operand.const_value is None or value.shape is None:
        return None
    if not is_read_once(operand):
        return None
    shape = operand.const_value.shape.numpy()
    own_axis = axis - (len(value.shape) - len(shape))
    if operand.const_value.dtype != ir.DataType.FLOAT or not 0 <= own_axis < len(shape):
        return None
    if math.prod(shape) != channels or shape[own_axis] != channels:
        return None
    return str(operand.name), own_axis


def constant_name(node: ir.Node, index: int, channels: int) -> str | None:
    """Return the node's own constant [C] at an input, None for anything else."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.const_value is None or not is_read_once(value):
        return None
    return str(value.name) if tuple(value.const_value.shape.numpy()) == (channels,) else None


def is_read_once(value: ir.Value) -> bool:
    """Return whether only one node reads an initializer, so that changing it is safe."""
    used_once = len(list(value.uses())) == 1
    return value.is_initializer() and used_once and not value.is_graph_output()


def is_norm(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """Return whether `value` is the output of a norm over channels on `axis`, not a moment."""
    return node.op_type in NORMS and value is node.outputs[0] and norm_axis(node) == axis


def norm_axis(norm: ir.Node) -> int | None:
    """Return the channel axis of a norm's scale, as a positive number."""
    if norm.op_type not in ("LayerNormalization", "RMSNormalization"):
        return 1
    x = norm.inputs[0]
    if x is None or x.shape is None:
        return None
    rank = len(x.shape)
    axis = norm.attributes.get_int("axis", -1) % rank
    return axis if axis == rank - 1 else None


def without_shift(fold: ProducerFold | None) -> ProducerFold | None:
    """Return the fold of the scale alone: a bias that would take the shift is only divided."""
    return None if fold is None else ProducerFold(divide=fold.divide, subtract=())


def parts(divide: list[tuple[str, int]], subtract: tuple[str, int] | None) -> ProducerFold:
    """Return the fold into whole initializers, each with its channel axis."""
    return ProducerFold(
        divide=tuple(FoldPart(initializer=n, axis=axis, start=0) for n, axis in divide),
        subtract=()
        if subtract is None
        else (FoldPart(initializer=subtract[0], axis=subtract[1], start=0),),
    )
