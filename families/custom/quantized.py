"""Detect whether a custom file is already quantized: how, and with which zero points."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from .products import is_computed_constant

MICROSOFT = "com.microsoft"
# Operators by form, and which of their inputs are zero points.
ZERO_POINTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (2,),
    "DequantizeLinear": (2,),
    "QLinearConv": (2, 5, 7),
    "QLinearMatMul": (2, 5, 7),
    "QGemm": (2, 5, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (4, 5),
    "DynamicQuantizeMatMul": (3,),
}
INTEGER_OPS = (
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"),
    *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
)
WEIGHT_ONLY_OPS = ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4")


@dataclass(frozen=True, slots=True)
class Quantized:
    """Describe how a file is quantized, its operators by count, and its zero points."""

    form: str
    operators: Counter[str]
    zero_points: str
    symmetric: bool


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Raise ExportError for an already quantized file; constant weights alone may be.

    Weights that only DequantizeLinear reads are folded into float32 by a later pass.
    """
    quantization = find_quantized(model)
    if quantization is None:
        return
    counted = ", ".join(f"{count} {op}" for op, count in quantization.operators.most_common(3))
    do = "give the float32 file that it was made from"
    if quantization.form == "Q/DQ" and quantization.symmetric:
        do += "; TensorRT and ONNX Runtime take this one as it is"
    elif quantization.form != "weight-only" and not quantization.symmetric:
        do += "; TensorRT takes no zero points but 0"
    raise ExportError(
        f"is already quantized ({quantization.form}: {counted}; {quantization.zero_points})",
        where=str(path),
        do=do,
    )


def find_quantized(model: ir.Model) -> Quantized | None:
    """Return what quantizes activations, or stores weights in an operator of their own."""
    by_form: dict[str, Counter[str]] = {}
    nodes = []
    for node in model.graph.all_nodes():
        form = quantization_kind(node)
        if form is not None:
            by_form.setdefault(form, Counter())[node.op_type] += 1
        if form is not None or node.op_type == "DequantizeLinear":
            nodes.append(node)
    if not by_form:
        return None
    form = max(by_form, key=lambda key: by_form[key].total())
    operators = sum(by_form.values(), Counter())
    text, symmetric = describe_zero_points(nodes)
    return Quantized(form, operators, text, symmetric)


def quantization_kind(node: ir.Node) -> str | None:
    """Return how a node quantizes; None if it does not, and for the weights of Q/DQ."""
    if node.domain not in ("", MICROSOFT):
        return "TensorRT" if node.domain == "trt" and node.op_type.startswith("TRT_FP4") else None
    if node.op_type in INTEGER_OPS:
        return "integer operators with dynamic ranges"
    if node.op_type in WEIGHT_ONLY_OPS:
        return "weight-only"
    if node.op_type.startswith("QLinear") or node.op_type in ("QGemm", "QAttention"):
        return "QOperator"
    if node.op_type == "QuantizeLinear":
        x = node.inputs[0]
        return None if x is None or is_computed_constant(x) else "Q/DQ"
    return None


def describe_zero_points(nodes: list[ir.Node]) -> tuple[str, bool]:
    """Return a text on the zero points, and whether all of them are known to be 0."""
    values: list[np.ndarray] = []
    computed = 0
    for node in nodes:
        for index in ZERO_POINTS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                computed += 1
            else:
                values.append(tensor.numpy())
    if computed:
        return "zero points computed on every run", False
    if not values:
        return "no zero points", True
    shifted = [v for v in values if np.any(v.astype(np.float64) != 0)]
    kinds = ", ".join(sorted({str(v.dtype) for v in values}))
    if not shifted:
        return f"all zero points 0, {kinds}", True
    first = shifted[0].reshape(-1)
    example = first[first.astype(np.float64) != 0][0]
    return f"{len(shifted)} of {len(values)} zero points not 0, such as {example}; {kinds}", False
