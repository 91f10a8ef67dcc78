"""Write linears in a Q/DQ form that does not overflow in half precision.

    x -> [Mul 1/s] -> [Sub c] -> Q -> [Clip] -> DQ -> MatMul(W_q c_w) -> Mul s_w/c_w -> Add bias

DQ of input and weight have one scalar scale each, so that an engine puts their product into the
GEMM's alpha; with a scale per channel on the weight the raw INT32 sums would leave the GEMM as
half. ``c_w`` is the median of the channels' scales s_w; their ratio is a Mul of [1, .., 1, O]
behind the product. The offset's part, c sum(W_q s_w), goes into the bias.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import RecipeError
from ...graph.builder import Inserter, constant, constant_array
from ...graph.edit import add_to_bias, insert_behind
from ...graph.linears import gemm_to_matmul, gemm_transposes, is_plain_gemm
from ...graph.sites import Site
from ...numerics.weight import FP8, QuantizedWeight, as_fp8
from .nodes import SiteWeights, quantize_input


def rewrite_linear(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> ir.Node:
    """Put a MatMul or Gemm into its Q/DQ form; returns the node that is the product now.

    A Gemm becomes a MatMul and an Add, so that the channels' factor fits between them.

    Raises:
        RecipeError: a Gemm that is more than a linear (alpha, beta, transA).
    """
    if node.op_type == "Gemm":
        node = lower_gemm(graph, node, site)
    if chosen.quantized is None or chosen.activation is None:
        node.replace_input_with(1, place_float_side_weight(graph, node, site, chosen))
        if chosen.quantized is not None and chosen.quantized.factor is not None:
            insert_factor(graph, node.outputs[0], site, chosen.quantized.factor)
        return node
    source, quantized = node.inputs[0], engine_weight(chosen.quantized)
    assert source is not None
    node.replace_input_with(
        0, quantize_input(Inserter(graph, node, site.name), site, source, chosen)
    )
    common = np.asarray(np.median(quantized.scale), np.float32)
    node.replace_input_with(1, dequantized(graph, node, site, quantized, common))
    value = node.outputs[0]
    last: tuple[int, ...] = (1,) * site.channel_axis + (-1,)
    if quantized.scale.size > 1:
        factor = (quantized.scale.astype(np.float64) / common).astype(np.float32)
        value = insert_factor(graph, value, site, factor)
    if np.any(chosen.offset):
        add_to_bias(graph, value, site.name, chosen.constant_output(), last)
    return node


def lower_gemm(graph: ir.Graph, gemm: ir.Node, site: Site) -> ir.Node:
    """Replace the Gemm of a site by MatMul and Add, with the weight transposed.

    Raises:
        RecipeError: a Gemm that is more than a linear (alpha, beta, transA).
    """
    if not is_plain_gemm(gemm):
        raise RecipeError(
            f"{site.name} is a Gemm with alpha, beta or transA, which is no linear",
            do="exclude the site",
        )
    weight = gemm.inputs[1]
    assert weight is not None
    if gemm_transposes(gemm):
        turned = np.ascontiguousarray(constant_array(weight).T)
        weight = constant(graph, f"{site.name}.weight_t", turned)
    return gemm_to_matmul(
        graph, gemm, weight, output=f"{site.name}/MatMul:0", added=f"{site.name}/Add"
    )


def insert_factor(
    graph: ir.Graph, value: ir.Value, site: Site, factor: NDArray[np.float32]
) -> ir.Value:
    """Multiply `value` by `factor` [O], in front of the bias."""
    last = (1,) * site.channel_axis + (-1,)
    held = constant(graph, f"{site.name}.channel_factor", factor.reshape(last))
    return insert_behind(graph, value, "Mul", held, f"{site.name}/Mul_factor")


def engine_weight(weight: QuantizedWeight) -> QuantizedWeight:
    """Return what a quantized product computes with: powers of two are FP8 there."""
    return as_fp8(weight) if weight.format.grid == "log2" else weight


def place_float_side_weight(
    graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights
) -> ir.Value:
    """Place the weight of a product that computes in float: with DQ, or as plain floats."""
    if chosen.quantized is None:
        assert chosen.floating is not None
        return constant(graph, f"{site.name}.weight_f", np.ascontiguousarray(chosen.floating.T))
    quantized = chosen.quantized
    if quantized.is_logarithmic:
        expanded = np.ascontiguousarray(quantized.dequantize().T)
        return constant(graph, f"{site.name}.weight_log", expanded)
    scale = quantized.scale if quantized.scale.size > 1 else quantized.scale.reshape(())
    return dequantized(graph, node, site, quantized, scale)


def dequantized(
    graph: ir.Graph,
    node: ir.Node,
    site: Site,
    quantized: QuantizedWeight,
    scale: NDArray[np.float32],
) -> ir.Value:
    """Add the DQ of a weight as [I, O] with `scale`: a scalar, [O], or of blocks."""
    if quantized.format.block is not None:
        return blocks_dequantized(graph, node, site, quantized)
    kind = FP8 if quantized.format.grid == "fp8" else np.int8
    codes = np.ascontiguousarray(quantized.q.T).view(kind)
    return Inserter(graph, node, f"{site.name}.weight")(
        "DequantizeLinear",
        constant(graph, f"{site.name}.weight_q", codes),
        constant(graph, f"{site.name}.weight_scale", scale),
        constant(graph, f"{site.name}.weight_zero_point", np.zeros(scale.shape, kind)),
        **({"axis": 1} if scale.ndim else {}),
    )


def blocks_dequantized(
    graph: ir.Graph, node: ir.Node, site: Site, quantized: QuantizedWeight
) -> ir.Value:
    """Return DQ of INT4 codes [I, O] with scales [I / block, O]: one that engines do not expand."""
    assert quantized.format.block is not None
    codes = np.ascontiguousarray(quantized.q.T).astype(ml_dtypes.int4)
    return Inserter(graph, node, f"{site.name}.weight")(
        "DequantizeLinear",
        constant(graph, f"{site.name}.weight_q", codes),
        constant(graph, f"{site.name}.weight_scale", np.ascontiguousarray(quantized.scale.T)),
        axis=0,
        block_size=quantized.format.block,
    )
