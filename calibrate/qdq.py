"""Insert Q/DQ nodes: the canonical graph that ONNX Runtime runs and TensorRT builds.

At a quantized convolution the input goes through

    x -> [Pad 0] -> Mul 1/s -> [Sub c] -> Q -> [Clip] -> DQ -> Conv(W_q s_w) + bias + c sum(W_q s_w)

with one scalar scale, no zero point. ``c`` moves a range onto the symmetric grid: a scalar
``shift * scale`` for a one-sided tensor, or the centres [C] of the channels' ranges. Padding comes
first, because a zero of x is not a zero of x/s - c. In front of the pointwise chain the Pad fuses
into its kernel; behind the DQ it would break the INT8 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..artifacts import ActivationFormat, Site
from .formats import FP8, QuantizedWeight
from .observers import constant

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """What a site's product computes with: the quantized (smoothed) weight, or a float one.

    `smoothing` [C] divides the input and is already multiplied into the weight; None is none.
    `center` [C] is subtracted from the input after that.
    """

    quantized: QuantizedWeight | None
    floating: Floats | None = None
    activation: ActivationFormat | None = None
    smoothing: Floats | None = None
    center: Floats | None = None

    @property
    def offset(self) -> Floats | np.float32:
        """What is subtracted from the smoothed input: [C], or a scalar (0 for nothing)."""
        if self.center is not None:
            return self.center
        if self.activation is None or self.activation.scale is None:
            return np.float32(0)
        return np.float32(self.activation.shift) * np.float32(self.activation.scale)


def insert_qdq(graph: ir.Graph, sites: Sequence[Site], weights: Mapping[str, SiteWeights]) -> None:
    """Rewrite every site of `graph` that `weights` names; the others keep their nodes.

    1. A DQ feeds exactly one product. 2. Sites that share an input get one Q/DQ chain each, with
    the same constants. 3. Initializers that nothing uses any more are removed.
    """
    nodes = {str(node.name): node for node in graph}
    for site in sites:
        if site.name in weights:
            rewrite_site(graph, nodes[site.node], site, weights[site.name])
    fold_norms(graph, nodes, sites, weights)
    drop_unused_initializers(graph)


def rewrite_site(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> None:
    weight = place_weight(graph, node, site, chosen)
    node.replace_input_with(1, weight)
    if chosen.activation is None:
        return
    activation = chosen.activation
    assert chosen.quantized is not None and activation.scale is not None
    scale = np.float32(activation.scale)
    offset = chosen.offset
    shifted = bool(np.any(offset))
    value = node.inputs[0]
    assert value is not None
    chain = Chain(graph, node, site.name)
    pads = [int(p) for p in node.attributes["pads"].as_ints()] if "pads" in node.attributes else []
    if shifted and any(pads):
        half = len(pads) // 2
        all_pads = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        value = chain.add("Pad", value, constant(graph, f"{site.name}.pads", all_pads))
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    if chosen.smoothing is not None and site.fold is None:
        inverse = (1 / chosen.smoothing.astype(np.float64)).astype(np.float32)
        name = f"{site.name}.input_scale"
        value = chain.add("Mul", value, constant(graph, name, inverse.reshape(1, -1, 1, 1)))
    if shifted and site.fold is None:
        held = offset.reshape(1, -1, 1, 1) if offset.ndim else offset
        value = chain.add("Sub", value, constant(graph, f"{site.name}.input_shift", held))
    q_scale = constant(graph, f"{site.name}.activation_scale", scale)
    kind = FP8 if activation.grid == "fp8" else np.int8
    zero = constant(graph, f"{site.name}.zero_point", np.zeros((), kind))
    value = chain.add("QuantizeLinear", value, q_scale, zero)
    if activation.bits < 8:
        reach = 2 ** (activation.bits - 1)
        low = constant(graph, f"{site.name}.clip_low", np.int8(-reach))
        high = constant(graph, f"{site.name}.clip_high", np.int8(reach - 1))
        value = chain.add("Clip", value, low, high)
    value = chain.add("DequantizeLinear", value, q_scale, zero)
    node.replace_input_with(0, value)
    if shifted:
        by_channel = chosen.quantized.dequantize().astype(np.float64).sum(axis=(2, 3))
        constant_part = (by_channel * offset.astype(np.float64)).sum(axis=1)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        before = 0.0 if bias is None else initializer_array(bias).astype(np.float64)
        corrected = (before + constant_part).astype(np.float32)
        node.resize_inputs(3)
        node.replace_input_with(2, constant(graph, f"{site.name}.bias_shifted", corrected))


def place_weight(graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights) -> ir.Value:
    """A uniform or FP8 grid with DQ; a logarithmic one and floats as expanded float32."""
    if chosen.quantized is None:
        assert chosen.floating is not None
        return constant(graph, f"{site.name}.weight_f", chosen.floating)
    quantized = chosen.quantized
    if quantized.ratio is not None:
        return constant(graph, f"{site.name}.weight_log", quantized.dequantize())
    kind = FP8 if quantized.format.grid == "fp8" else np.int8
    codes = constant(graph, f"{site.name}.weight_q", quantized.codes.view(kind))
    per_channel = quantized.scale.size > 1
    scale = quantized.scale if per_channel else quantized.scale.reshape(())
    zero = np.zeros(scale.shape, kind)
    chain = Chain(graph, node, f"{site.name}.weight")
    return chain.add(
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
    """Divide a GroupNorm's affine by the smoothing of the sites it feeds, subtract their offset.

    New initializers are made: the exporter shares equal-valued ones between norms.
    """
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
        smoothing = np.float64(1) if chosen.smoothing is None else chosen.smoothing.astype(float)
        for index, name, offset in ((1, "scale", np.float32(0)), (2, "bias", chosen.offset)):
            value = norm.inputs[index]
            assert value is not None
            folded = initializer_array(value).astype(np.float64) / smoothing - offset
            label = f"{norm.name}.folded_{name}"
            norm.replace_input_with(index, constant(graph, label, folded.astype(np.float32)))


def norm_behind(node: ir.Node) -> ir.Node:
    """The GroupNormalization whose output reaches `node` through its Q/DQ chain."""
    value = node.inputs[0]
    while value is not None:
        producer = value.producer()
        assert producer is not None
        if producer.op_type == "GroupNormalization":
            return producer
        value = producer.inputs[0]
    raise AssertionError(f"{node.name} has a fold but no norm in front")


def initializer_array(value: ir.Value) -> NDArray[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy()


def drop_unused_initializers(graph: ir.Graph) -> None:
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)


class Chain:
    """Adds nodes in front of `before`, named after a site."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self.graph = graph
        self.before = before
        self.prefix = prefix

    def add(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{self.prefix}/{op}")
        node.outputs[0].name = f"{self.prefix}/{op}:0"
        self.graph.insert_before(self.before, node)
        return node.outputs[0]
