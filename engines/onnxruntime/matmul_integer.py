"""Rewrite quantized linears as integer products with a float output, for ONNX Runtime on a CPU.

    QuantizeLinear(uint8, zero point 128) -> MatMulIntegerToFloat(scale and bias a channel)

Left to itself ONNX Runtime runs the canonical form in float, or fuses it into kernels that are
wrong for symmetric INT8; nothing here is rounded that the Q/DQ graph does not round. The kernel is
`com.microsoft`'s: it scales and adds while the sums are in registers, which as nodes of their own
would each go through memory. What is a factor of the rows (a scale a position) stays a Mul behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import Inserter, constant_array
from ...graph.edit import producer, take_over
from ...graph.passes import ensure, remove_dead_nodes
from .integers import INT32_MAX, largest_sums

DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class QuantizedInput:
    """Hold what Q -> [Clip] -> DQ in front of a product says: its input, scale, int8 bounds."""

    source: ir.Value
    scale: float
    clip: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Behind:
    """Describe what follows a product: `value` is it times `factor` [O] plus `bias` [O]."""

    value: ir.Value
    factor: NDArray[np.float64]
    bias: NDArray[np.float64]


class MatMulIntegerPass(ir.passes.InPlacePass):
    """Turn every MatMul with INT8 Q/DQ on both sides into MatMulIntegerToFloat.

    `rewritten` names the nodes that the last call replaced, in graph order: an engine's report
    lists them, and the graph has lost them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rewritten: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        done = []
        for node in list(graph):
            if node.op_type != "MatMul":
                continue
            quantized = match_input(node)
            weight = producer(node.inputs[1], "DequantizeLinear")
            if quantized is None or weight is None or not has_one_scale(weight):
                continue
            if may_overflow(weight.inputs[0]):
                continue
            rewrite(graph, node, quantized, weight)
            done.append(str(node.name))
        if done:
            model.opset_imports.setdefault(DOMAIN, 1)
        self.rewritten = tuple(done)
        unused = remove_dead_nodes(graph)
        return ir.passes.PassResult(model, modified=bool(done) or unused)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a rewritten product that is still there, or no domain."""
        nodes = [node for node in model.graph if node.op_type == "MatMul"]
        ensure(f"{node.name} is still a MatMul" for node in nodes if node.name in self.rewritten)
        if any(node.domain == DOMAIN for node in model.graph) and DOMAIN not in model.opset_imports:
            ensure([f"the model does not import {DOMAIN}"])


def match_input(node: ir.Node, side: int = 0) -> QuantizedInput | None:
    """Return the quantized input in front of a product, or None if there is none."""
    dequantize = producer(node.inputs[side], "DequantizeLinear")
    if dequantize is None:
        return None
    clip = producer(dequantize.inputs[0], "Clip")
    quantize = producer((clip or dequantize).inputs[0], "QuantizeLinear")
    if quantize is None or constant_array(quantize.inputs[2]).dtype != np.int8:
        return None
    bounds = None
    if clip is not None:
        bounds = (int(constant_array(clip.inputs[1])), int(constant_array(clip.inputs[2])))
    source = quantize.inputs[0]
    assert source is not None
    return QuantizedInput(source, float(constant_array(quantize.inputs[1])), bounds)


def has_one_scale(dequantize: ir.Node) -> bool:
    """Return whether an INT8 operand, a weight or an activation, has a single scale."""
    _, scale, zero = dequantize.inputs
    return constant_array(zero).dtype == np.int8 and not constant_array(scale).ndim


def may_overflow(weight_q: ir.Value | None) -> bool:
    """Return whether sums over a constant weight [I, O] can leave INT32: from 66,000 inputs."""
    if weight_q is None or weight_q.const_value is None:
        return False
    return bool((largest_sums(constant_array(weight_q).T) > INT32_MAX).any())


def rewrite(graph: ir.Graph, node: ir.Node, quantized: QuantizedInput, weight: ir.Node) -> None:
    right_q = weight.inputs[0]
    assert right_q is not None
    add = Inserter(graph, node, numbered=True)
    end = Behind(node.outputs[0], np.ones(()), np.zeros(()))
    other_zero = None
    if right_q.const_value is not None:
        end = fold_behind(node.outputs[0], right_q.const_value.shape.numpy()[1])
        right_q = add.constant("w_codes", constant_array(right_q))
    elif other := match_input(node, 1):
        # Two activations: CPUs without VNNI saturate uint8 times int8, and no session can turn what
        # is no constant into uint8.
        right_q, _, other_zero = quantize_unsigned(add, other, "other_")
    value, step, zero = quantize_unsigned(add, quantized)
    scale = float(constant_array(weight.inputs[1])) * end.factor
    inputs = [
        value,
        right_q,
        step,
        add.constant("w_scale", scale.astype(np.float32)),
        zero,
        other_zero,
        add.constant("bias", end.bias.astype(np.float32)) if end.bias.any() else None,
    ]
    product = add.of_domain(DOMAIN, "MatMulIntegerToFloat", inputs)
    take_over(product, end.value)


def quantize_unsigned(
    add: Inserter, quantized: QuantizedInput, kind: str = ""
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Quantize to uint8 around 128, clipped as int8 was; returns values, scale and zero point."""
    step = add.constant(f"{kind}x_scale", np.array(quantized.scale, np.float32))
    zero = add.constant(f"{kind}x_zero", np.array(128, np.uint8))
    value = add("QuantizeLinear", quantized.source, step, zero)
    if quantized.clip is not None:
        low, high = (np.array(np.clip(v + 128, 0, 255), np.uint8) for v in quantized.clip)
        bounds = (add.constant(f"{kind}u8_{end}", v) for end, v in (("low", low), ("high", high)))
        value = add("Clip", value, *bounds)
    return value, step, zero


def fold_behind(value: ir.Value, channels: int) -> Behind:
    """Return the constant factors and biases per channel that directly follow a product."""
    factor, bias = np.ones(channels), np.zeros(channels)
    while len(value.uses()) == 1 and not value.is_graph_output():
        user, index = next(iter(value.uses()))
        if user.op_type not in ("Mul", "Add"):
            break
        operand = by_channel(user.inputs[1 - index], value, channels)
        if operand is None:
            break
        if user.op_type == "Mul":
            factor, bias = factor * operand, bias * operand
        else:
            bias = bias + operand
        value = user.outputs[0]
    return Behind(value, factor, bias)


def by_channel(
    value: ir.Value | None, other: ir.Value, channels: int
) -> NDArray[np.float64] | None:
    """Return a constant [channels] that adds no axis to `other`, or None for anything else."""
    if value is None or value.const_value is None or other.shape is None:
        return None
    shape = value.const_value.shape.numpy()
    if len(shape) > len(other.shape) or tuple(shape) != (1,) * (len(shape) - 1) + (channels,):
        return None
    return constant_array(value).astype(np.float64).ravel()
