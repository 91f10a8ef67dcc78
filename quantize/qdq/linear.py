"""The Q/DQ form of linears, which does not overflow in half precision.

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

from ...calibrate.observers.reduce import constant, initializer_array
from ...errors import RecipeError
from ...graph.sites import Site
from ...numerics.weight import FP8, QuantizedWeight, as_fp8
from .nodes import Chain, SiteWeights, gemm_transposes, quantize_input


def rewrite_linear(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> ir.Node:
    """Put a MatMul or Gemm into its Q/DQ form; returns the node that is the product now.

    A Gemm becomes a MatMul and an Add, so that the channels' factor fits between them.

    Raises:
        RecipeError: a Gemm that is more than a linear (alpha, beta, transA).
    """
    if node.op_type == "Gemm":
        node = gemm_to_matmul(graph, node, site)
    if chosen.quantized is None or chosen.activation is None:
        node.replace_input_with(1, place_float_side_weight(graph, node, site, chosen))
        if chosen.quantized is not None and chosen.quantized.factor is not None:
            insert_factor(graph, node.outputs[0], site, chosen.quantized.factor)
        return node
    source, quantized = node.inputs[0], engine_weight(chosen.quantized)
    assert source is not None
    node.replace_input_with(0, quantize_input(Chain(graph, node, site.name), site, source, chosen))
    common = np.asarray(np.median(quantized.scale), np.float32)
    node.replace_input_with(1, dequantized(graph, node, site, quantized, common))
    value = node.outputs[0]
    last: tuple[int, ...] = (1,) * site.channel_axis + (-1,)
    if quantized.scale.size > 1:
        factor = (quantized.scale.astype(np.float64) / common).astype(np.float32)
        value = insert_factor(graph, value, site, factor)
    if np.any(chosen.offset):
        add_to_bias(graph, value, site, chosen.constant_output(), last)
    return node


def insert_factor(
    graph: ir.Graph, value: ir.Value, site: Site, factor: NDArray[np.float32]
) -> ir.Value:
    """`value` times `factor` [O], in front of the bias."""
    last = (1,) * site.channel_axis + (-1,)
    held = constant(graph, f"{site.name}.channel_factor", factor.reshape(last))
    return insert_behind(graph, value, "Mul", held, f"{site.name}/Mul_factor")


def engine_weight(weight: QuantizedWeight) -> QuantizedWeight:
    """What a quantized product computes with: powers of two are FP8 there."""
    return as_fp8(weight) if weight.format.grid == "log2" else weight


def gemm_to_matmul(graph: ir.Graph, gemm: ir.Node, site: Site) -> ir.Node:
    """x W^T + b as MatMul and Add, with the weight transposed."""
    plain = all(
        gemm.attributes[k].value == v
        for k, v in {"alpha": 1.0, "beta": 1.0, "transA": 0}.items()
        if k in gemm.attributes
    )
    if not plain:
        raise RecipeError(
            f"{site.name} is a Gemm with alpha, beta or transA, which is no linear",
            do="exclude the site",
        )
    weight = gemm.inputs[1]
    assert weight is not None
    if gemm_transposes(gemm):
        turned = np.ascontiguousarray(initializer_array(weight).T)
        weight = constant(graph, f"{site.name}.weight_t", turned)
    product = ir.node("MatMul", [gemm.inputs[0], weight], name=str(gemm.name))
    product.outputs[0].name = f"{site.name}/MatMul:0"
    graph.insert_before(gemm, product)
    value = product.outputs[0]
    value.type, value.shape = gemm.outputs[0].type, gemm.outputs[0].shape
    old = gemm.outputs[0]
    if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
        added = ir.node("Add", [value, gemm.inputs[2]], name=f"{site.name}/Add")
        graph.insert_before(gemm, added)
        value = added.outputs[0]
        value.type, value.shape = old.type, old.shape
    name, old.name = old.name, f"{old.name}:gemm"
    value.name = name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(gemm, safe=True)
    return product


def place_float_side_weight(
    graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights
) -> ir.Value:
    """Of a product that computes in float: a weight-only grid per channel, or plain floats."""
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
    """DQ of the codes as [I, O] with `scale`, a scalar or [O], or of blocks [O, I / block]."""
    if quantized.format.block is not None:
        return blocks_dequantized(graph, node, site, quantized)
    kind = FP8 if quantized.format.grid == "fp8" else np.int8
    codes = np.ascontiguousarray(quantized.codes.T).view(kind)
    return Chain(graph, node, f"{site.name}.weight").add(
        "DequantizeLinear",
        constant(graph, f"{site.name}.weight_q", codes),
        constant(graph, f"{site.name}.weight_scale", scale),
        constant(graph, f"{site.name}.weight_zero_point", np.zeros(scale.shape, kind)),
        **({"axis": 1} if scale.ndim else {}),
    )


def blocks_dequantized(
    graph: ir.Graph, node: ir.Node, site: Site, quantized: QuantizedWeight
) -> ir.Value:
    """DQ of INT4 codes [I, O] with scales [I / block, O]: one that engines do not expand."""
    assert quantized.format.block is not None
    codes = np.ascontiguousarray(quantized.codes.T).astype(ml_dtypes.int4)
    return Chain(graph, node, f"{site.name}.weight").add(
        "DequantizeLinear",
        constant(graph, f"{site.name}.weight_q", codes),
        constant(graph, f"{site.name}.weight_scale", np.ascontiguousarray(quantized.scale.T)),
        axis=0,
        block_size=quantized.format.block,
    )


def add_to_bias(
    graph: ir.Graph,
    value: ir.Value,
    site: Site,
    addition: NDArray[np.float64],
    shape: tuple[int, ...],
) -> None:
    """Into the constant that is added to the product, or one of its own."""
    users = [user for user, _ in value.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not value.is_graph_output():
        index = 1 if users[0].inputs[0] is value else 0
        bias = users[0].inputs[index]
        held_bias = None if bias is None else bias.const_value
        if bias is not None and held_bias is not None and held_bias.size == addition.size:
            before = initializer_array(bias).astype(np.float64)
            total = (before.ravel() + addition).astype(np.float32).reshape(before.shape)
            held = constant(graph, f"{site.name}.bias_shifted", total)
            users[0].replace_input_with(index, held)
            return
    held = constant(graph, f"{site.name}.bias", addition.astype(np.float32).reshape(shape))
    insert_behind(graph, value, "Add", held, f"{site.name}/Add_offset")


def insert_behind(graph: ir.Graph, value: ir.Value, op: str, held: ir.Value, name: str) -> ir.Value:
    """`op`(value, held) for everyone who reads `value`, under whose name it goes from now on.

    A site's output is known by its name, be it inside the graph or at its end.
    """
    node = ir.node(op, [value, held], name=name)
    made = node.outputs[0]
    made.type, made.shape = value.type, value.shape
    producer = value.producer()
    assert producer is not None
    made.name, value.name = value.name, f"{name}:input"
    for user, index in list(value.uses()):
        if user is not node:
            user.replace_input_with(index, made)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = made
    graph.insert_after(producer, node)
    return made
