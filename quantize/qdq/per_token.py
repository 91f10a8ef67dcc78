"""Write linears with a static scale per token as one INT8 or FP8 GEMM for engines.

    x -> Mul 1/d -> [Sub c] -> Q(a) -> [Clip] -> DQ(a) -> MatMul(W_q c_w) -> Mul s_w/c_w
      -> [Add c sum(W_q s_w)] -> Mul d -> Add bias

d [T, 1] is a factor of the rows, so it commutes with the product: a and c_w stay scalars. c = a k
is an exact shift of one-sided ranges, k an integer a position (an FP8 grid has none). Both are
tables [T, 1]; in a graph that computes some positions at a time they are gathered by its input of
position numbers. One grid for all positions has no Mul d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...calibrate.observers.reduce import values_by_name
from ...graph.builder import Inserter, constant
from ...graph.edit import add_to_bias, insert_behind
from ...graph.sites import Site
from ...numerics.parts import parts
from ...numerics.qparams import QParams
from ...numerics.scheme import ActivationFormat
from ...numerics.weight import QuantizedWeight
from .linear import dequantized, engine_weight, insert_factor, lower_gemm
from .nodes import SiteWeights, quantize_dequantize, scale_input


@dataclass(frozen=True, slots=True)
class TokenSite:
    """Hold the quantized weight [O, I] of a folded site, and the QParams of its input."""

    weight: QuantizedWeight
    qparams: QParams


def rewrite_scaled_token_linear(
    graph: ir.Graph, node: ir.Node, site: Site, chosen: SiteWeights
) -> ir.Node:
    """Put a linear, whose channels are scaled and centred first, into its Q/DQ form.

    Returns the node that is the product now.

    Raises:
        RecipeError: a Gemm that is more than a linear (alpha, beta, transA).
    """
    assert chosen.quantized is not None and chosen.qparams is not None
    if node.op_type == "Gemm":
        node = lower_gemm(graph, node, site)
    source = node.inputs[0]
    assert source is not None
    # The scales of tokens have nodes of the site's name.
    chain = Inserter(graph, node, f"{site.name}/channels")
    node.replace_input_with(0, scale_input(chain, site, source, chosen))
    token_site = TokenSite(chosen.quantized, chosen.qparams)
    value = rewrite_token_linear(graph, node, site, token_site)
    if chosen.center is not None:
        last: tuple[int, ...] = (1,) * site.channel_axis + (-1,)
        add_to_bias(graph, value, chain.prefix, chosen.constant_output(), last)
    return node


def rewrite_token_linear(graph: ir.Graph, node: ir.Node, site: Site, chosen: TokenSite) -> ir.Value:
    """Put a MatMul or Gemm into its Q/DQ form; returns the product, in front of the bias.

    Raises:
        RecipeError: a Gemm that is more than a linear (alpha, beta, transA).
    """
    if node.op_type == "Gemm":
        node = lower_gemm(graph, node, site)
    qparams, weight = chosen.qparams, engine_weight(chosen.weight)
    tables = Tables(graph, node, site, len(qparams.scale))
    chain = Inserter(graph, node, site.name)
    value = node.inputs[0]
    assert value is not None
    per_token = qparams.granularity == "per_token"
    if per_token:
        inverse = 1 / qparams.token_scale.astype(np.float64)
        value = chain("Mul", value, tables.get("token_inverse", inverse))
    offset = qparams.offset
    if offset.any():
        value = chain("Sub", value, tables.get("input_shift", offset))
    kind: Literal["uniform", "fp8"] = "fp8" if qparams.dtype == "fp8" else "uniform"
    scale = float(qparams.engine_scale)
    activation = ActivationFormat(bits=qparams.bits, grid=kind, scale=scale)
    node.replace_input_with(0, quantize_dequantize(chain, site, value, activation))
    common = np.asarray(np.median(weight.scale), np.float32)
    node.replace_input_with(1, dequantized(graph, node, site, weight, common))
    out = node.outputs[0]
    last: tuple[int, ...] = (1,) * site.channel_axis + (-1,)
    if weight.scale.size > 1:
        factor = (weight.scale.astype(np.float64) / common).astype(np.float32)
        out = insert_factor(graph, out, site, factor)
    if offset.any():
        made = [
            weight.dequantize_rows(part).astype(np.float64).sum(axis=1) for part in parts(weight.q)
        ]
        out = add_shift(graph, out, site, offset, np.concatenate(made).reshape(last), tables)
    if per_token:
        factors = tables.get("token_scale", qparams.token_scale)
        out = insert_behind(graph, out, "Mul", factors, f"{site.name}/Mul_tokens")
    return out


def add_shift(
    graph: ir.Graph,
    out: ir.Value,
    site: Site,
    offset: np.ndarray,
    sums: np.ndarray,
    tables: Tables,
) -> ir.Value:
    """Add what the subtracted offset [T] takes away: a constant where it is one for all."""
    name = f"{site.name}/Add_offset"
    if (offset == offset[0]).all():
        total = (offset[0] * sums).astype(np.float32)
        held = constant(graph, f"{site.name}.offset_output", total)
        return insert_behind(graph, out, "Add", held, name)
    column = constant(graph, f"{site.name}.weight_sums", sums.astype(np.float32))
    product = ir.node(
        "Mul", [tables.get("input_shift", offset), column], name=f"{site.name}/Mul_offset"
    )
    product.outputs[0].name = f"{site.name}/Mul_offset:0"
    producer = out.producer()
    assert producer is not None
    graph.insert_before(producer, product)
    return insert_behind(graph, out, "Add", product.outputs[0], name)


class Tables:
    """Add a site's tables [T, 1], gathered by position where a graph computes only some tokens."""

    def __init__(self, graph: ir.Graph, node: ir.Node, site: Site, length: int) -> None:
        self._graph, self._node, self._site = graph, node, site
        self._positions: ir.Value | None = None
        if length > 1 and site.position_input is not None:
            self._positions = values_by_name(graph)[site.position_input]
        self._made: dict[str, ir.Value] = {}

    def get(self, name: str, values: np.ndarray) -> ir.Value:
        """Return the table `SITE.name` [T, 1], or its rows at the positions; or a scalar."""
        if name not in self._made:
            self._made[name] = self._make(name, np.asarray(values, np.float32))
        return self._made[name]

    def _make(self, name: str, values: np.ndarray) -> ir.Value:
        label = f"{self._site.name}.{name}"
        if (values == values[0]).all():
            return constant(self._graph, label, values[0])
        table = constant(self._graph, label, values.reshape(-1, 1))
        if self._positions is None:
            return table
        gather = ir.node("Gather", [table, self._positions], {"axis": 0}, name=f"{label}/Gather")
        gather.outputs[0].name = f"{label}/Gather:0"
        self._graph.insert_before(self._node, gather)
        return gather.outputs[0]
