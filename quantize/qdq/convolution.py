"""Insert Q/DQ nodes: the canonical graph that ONNX Runtime runs and TensorRT builds.

At a quantized convolution the input goes through

    x -> [Pad 0] -> Mul 1/s -> [Sub c] -> Q -> [Clip] -> DQ -> Conv(W_q s_w) + bias + c sum(W)

with one scalar scale, no zero point. ``c`` moves a range onto the symmetric grid: a scalar
``shift * scale`` for a one-sided tensor, or the centres [C] of the channels' ranges. Padding comes
first, because a zero of x is not a zero of x/s - c. In front of the pointwise chain the Pad fuses
into its kernel; behind the DQ it would break the INT8 convolution. Linears: `qdq_linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...graph.builder import Inserter, constant, constant_array
from ...graph.linears import LINEAR_OPS
from ...graph.passes import remove_unused
from ...graph.sites import Site
from ...numerics.weight import FP8
from ..fold import fold_into_norm, norm_behind
from .linear import engine_weight, rewrite_linear
from .nodes import SiteWeights, quantize_input
from .per_token import rewrite_scaled_token_linear


def insert_qdq(graph: ir.Graph, sites: Sequence[Site], weights: Mapping[str, SiteWeights]) -> None:
    """Rewrite every site of `graph` that `weights` names; the others keep their nodes.

    1. A DQ feeds exactly one product. 2. Sites that share an input get one Q/DQ chain each, with
    the same constants. 3. Initializers that nothing uses any more are removed.
    """
    nodes = {str(node.name): node for node in graph}
    for site in sites:
        if site.name not in weights:
            continue
        if weights[site.name].per_token:
            nodes[site.node] = rewrite_scaled_token_linear(
                graph, nodes[site.node], site, weights[site.name]
            )
        elif site.op in LINEAR_OPS:
            nodes[site.node] = rewrite_linear(graph, nodes[site.node], site, weights[site.name])
        else:
            rewrite_convolution(graph, nodes[site.node], site, weights[site.name])
    fold_norms(graph, nodes, sites, weights)
    remove_unused(graph)


def rewrite_convolution(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> None:
    node.replace_input_with(1, place_weight(graph, node, site, chosen))
    if chosen.activation is None:
        return
    value = node.inputs[0]
    assert value is not None
    shifted = bool(np.any(chosen.offset))
    chain = Inserter(graph, node, site.name)
    pads = [int(p) for p in node.attributes["pads"].as_ints()] if "pads" in node.attributes else []
    if shifted and any(pads):
        half = len(pads) // 2
        all_pads = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        value = chain("Pad", value, constant(graph, f"{site.name}.pads", all_pads))
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    node.replace_input_with(0, quantize_input(chain, site, value, chosen))
    if shifted:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        before = 0.0 if bias is None else constant_array(bias).astype(np.float64)
        corrected = (before + chosen.constant_output()).astype(np.float32)
        node.resize_inputs(3)
        node.replace_input_with(2, constant(graph, f"{site.name}.bias_shifted", corrected))


def place_weight(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> ir.Value:
    """Return a uniform or FP8 grid with DQ; a logarithmic one and floats as expanded float32."""
    if chosen.quantized is None:
        assert chosen.floating is not None
        return constant(graph, f"{site.name}.weight_f", chosen.floating)
    quantized = chosen.quantized
    if quantized.is_logarithmic and chosen.activation is not None:
        quantized = engine_weight(quantized)
    if quantized.is_logarithmic:
        return constant(graph, f"{site.name}.weight_log", quantized.dequantize())
    kind = FP8 if quantized.format.grid == "fp8" else np.int8
    codes = constant(graph, f"{site.name}.weight_q", quantized.q.view(kind))
    per_channel = quantized.scale.size > 1
    scale = quantized.scale if per_channel else quantized.scale.reshape(())
    zero = np.zeros(scale.shape, kind)
    chain = Inserter(graph, node, f"{site.name}.weight")
    return chain(
        "DequantizeLinear",
        codes,
        constant(graph, f"{site.name}.weight_scale", scale),
        constant(graph, f"{site.name}.weight_zero_point", zero),
        **({"axis": 0} if per_channel else {}),
    )


def fold_norms(
    graph: ir.Graph,
    nodes: Mapping[str, ir.Node],
    sites: Sequence[Site],
    weights: Mapping[str, SiteWeights],
) -> None:
    """Divide a norm's affine by the smoothing of the sites it feeds, and subtract their offset."""
    done: set[str] = set()
    for site in sites:
        chosen = weights.get(site.name)
        if site.fold is None or chosen is None or chosen.activation is None:
            continue
        if chosen.smoothing is None and not np.any(chosen.offset):
            continue
        norm = norm_behind(nodes[site.node])
        if str(norm.name) in done:
            continue
        done.add(str(norm.name))
        one = np.ones(1, np.float32)
        smoothing = one if chosen.smoothing is None else chosen.smoothing
        fold_into_norm(graph, nodes[site.node], smoothing, chosen.offset)
