"""Decide which nodes of a Q/DQ graph stay in FP32 when the rest computes in half precision.

1. Norms and sums, which lose digits or overflow in half, with the squares that only sums read and
   what is computed from sums alone (variance + epsilon, its root); a Softmax that is not an
   attention's (TensorRT fuses MatMul, Softmax, MatMul into one kernel only while all of it is
   half).
2. Discrete decisions: what lies between the last product and a float-to-integer step, and between
   integers and the next product (FSQ, floor divisions of indices). There a rounded bit flips a
   token. A product that feeds the decision (codebook distances) is named by the caller.
3. Every Quantize, which works in its scale's type, and a Dequantize whose scale is too small for
   half.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from ...errors import BuildError

NORMS = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"}
)
SUMS = frozenset(
    {"CumSum", "Exp", "Log", "LogSoftmax", "Pow", "ReduceL2", "ReduceMean", "ReduceSum"}
)
REDUCTIONS = frozenset({"ReduceL2", "ReduceMean", "ReduceSum"})
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
# The walk from an integer step to the nearest product ends at these.
BARRIERS = PRODUCTS | NORMS | QUANTIZERS | {"Gather", "Resize", "Softmax"}
TYPE_BLIND = frozenset({"Shape", "Size"})
INTEGER = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64})
DISCRETE = INTEGER | {ir.DataType.BOOL}
# Operators between the constant of a mask and the softmax.
MASKING = frozenset(
    {"Add", "Concat", "Expand", "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
) | {"Where"}


def single_precision(
    nodes: Sequence[ir.Node],
    keep_fp32: Collection[str],
    lacking: Collection[str],
    smallest_normal: float,
) -> set[ir.Node]:
    """Return the nodes that stay in FP32.

    They follow from the rules above, from `keep_fp32`, and from the operators `lacking` in the half
    type, whose smallest normal number is `smallest_normal`.
    """
    single = {
        node
        for node in nodes
        if node.name in keep_fp32
        or node.op_type in NORMS | SUMS | {"QuantizeLinear", *lacking}
        or (node.op_type == "Softmax" and not is_attention(node))
    }
    single |= squares(nodes) | statistics(nodes)
    single |= before_integers(nodes) | after_integers(nodes)
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            constant_scale(node)
        elif node.op_type == "DequantizeLinear":
            scale = constant_scale(node)
            consumers = consumers_of(node)
            if (scale is not None and scale.min() < smallest_normal) or (
                consumers and single.issuperset(consumers)
            ):
                single.add(node)
    return single


def squares(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return the products of a value with itself that only sums read, as norms have them."""
    return {
        node
        for node in nodes
        if node.op_type == "Mul"
        and node.inputs[0] is node.inputs[1]
        and {user.op_type for user in consumers_of(node)} <= REDUCTIONS
        and not node.outputs[0].is_graph_output()
    }


def statistics(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return nodes that compute from nothing but sums and constants, up to a product."""
    sums: set[ir.Node] = set()
    for node in nodes:
        if node.op_type in BARRIERS or not all(map(is_float, node.outputs)):
            continue
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        makers = [v.producer() for v in computed]
        if makers and all(m in sums or (m and m.op_type in REDUCTIONS) for m in makers):
            sums.add(node)
    return sums


def only_masks(value: ir.Value) -> bool:
    """Return whether a constant only reaches softmaxes, by steps that masks are made with.

    There any number far below the scores does for the lowest one of float32.
    """
    visited: set[ir.Node] = set()
    stack = [value]
    while stack:
        found = stack.pop()
        if found.is_graph_output():
            return False
        for node, _ in found.uses():
            if node in visited or node.op_type == "Softmax":
                continue
            if node.op_type not in MASKING:
                return False
            visited.add(node)
            stack += node.outputs
    return True


def holds_beyond(node: ir.Node, largest: float) -> bool:
    """Return whether a node has a finite constant above `largest` that is no mask.

    A variance may be one. Its result may still fit: what calibration saw overflow is kept in FP32
    by another list.
    """
    for value in node.inputs:
        if not is_float(value) or value is None or value.const_value is None or only_masks(value):
            continue
        array = value.const_value.numpy()
        if np.any(np.isfinite(array) & (np.abs(array) > largest)):
            return True
    return False


def constant_scale(node: ir.Node) -> np.ndarray | None:
    """Return the constant scale of a Quantize or Dequantize, checked; None if it is computed."""
    value = node.inputs[1]
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return None
    scale = value.const_value.numpy()
    if not np.all((scale > 0) & (scale < np.inf)):
        raise BuildError(
            f"scale {value.name} is not positive and finite",
            where=node.name,
            do="floor the scale when quantizing",
        )
    return scale


def before_integers(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return nodes whose values go only into a float-to-integer step, back to a product."""
    converted: set[ir.Node] = set()
    for node in reversed(nodes):
        if node.op_type in TYPE_BLIND or node.op_type == "QuantizeLinear":
            continue
        if any(is_float(v) for v in node.inputs) and any(v.dtype in DISCRETE for v in node.outputs):
            converted.add(node)
        elif node.op_type not in BARRIERS and any(is_float(v) for v in node.outputs):
            consumers = consumers_of(node)
            if consumers and converted.issuperset(consumers):
                converted.add(node)
    return converted


def after_integers(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return nodes that compute from converted integers and constants, up to a product."""
    integral: set[ir.Node] = set()
    for node in nodes:
        if node.op_type in BARRIERS or not any(is_float(v) for v in node.outputs):
            continue
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        converts = node.op_type == "Cast" and any(v.dtype in INTEGER for v in computed)
        continues = any(map(is_float, computed)) and integral.issuperset(
            v.producer() for v in computed
        )
        if converts or continues:
            integral.add(node)
    return integral


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def consumers_of(node: ir.Node) -> set[ir.Node]:
    users = {user for value in node.outputs for user, _ in value.uses()}
    return {user for user in users if user.op_type not in TYPE_BLIND}


def is_attention(softmax: ir.Node) -> bool:
    users = consumers_of(softmax)
    return bool(users) and all(user.op_type in ("MatMul", "QuantizeLinear") for user in users)
