"""Define what the Q/DQ forms of convolutions and linears share: weights and chains of nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import Inserter, constant
from ...graph.linears import LINEAR_OPS
from ...graph.sites import Site
from ...numerics.parts import Weight, parts
from ...numerics.qparams import QParams, input_offset
from ...numerics.scheme import ActivationFormat
from ...numerics.weight import FP8, QuantizedWeight
from ..fold import folds_scale, folds_shift

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """Hold what a site's product computes with: the quantized (smoothed) weight, or a float one.

    Weights have the output channel first, [O, I, ...], whatever ONNX wants. `smoothing` [C]
    divides the input and is already multiplied into the weight; None is none. `center` [C] is
    subtracted from the input after that, and `center_output` [O] is what it would have added to
    the product with the weight as it was before rounding. `qparams` are those of the input, whose
    scales per token are not in `activation`.
    """

    quantized: QuantizedWeight | None
    floating: Floats | None = None
    activation: ActivationFormat | None = None
    qparams: QParams | None = None
    smoothing: Floats | None = None
    center: Floats | None = None
    center_output: NDArray[np.float64] | None = None

    @property
    def per_token(self) -> bool:
        """Return whether the input has a scale per token."""
        return self.qparams is not None and self.qparams.granularity == "per_token"

    @property
    def offset(self) -> Floats | np.float32:
        """Return the shift that is subtracted from the smoothed input: [C], or a scalar."""
        if self.center is not None:
            return self.center
        return input_offset(self.activation)

    def constant_output(self) -> NDArray[np.float64]:
        """Return what the subtracted offset would have added to each output channel, [O].

        That of a centre is exact: what is rounded is W (x - c) alone, whose second moments GPTQ
        compensates and whose mean bias correction keeps. A scalar shift lies at the middle of a
        one-sided range, which is far from the mean; there the rounded weight meets all of x.
        """
        if self.center_output is not None:
            return self.center_output
        assert self.quantized is not None
        rows = self.quantized.dequantize_rows
        made = [offset_output(rows(part), self.offset) for part in parts(self.quantized.q)]
        return np.concatenate(made)


def offset_output(weight: Weight, offset: NDArray[np.floating] | np.float32) -> NDArray[np.float64]:
    """Return what a weight [O, C, ...] makes of an input of `offset`, [O] in float64."""
    found = []
    for part in parts(weight):
        rows = weight[part]
        by_channel = rows.reshape(*rows.shape[:2], -1).sum(axis=2, dtype=np.float64)
        found.append((by_channel * offset.astype(np.float64)).sum(axis=1))
    return np.concatenate(found)


def quantize_input(chain: Inserter, site: Site, value: ir.Value, chosen: SiteWeights) -> ir.Value:
    """Add x -> [Mul 1/s] -> [Sub offset] -> Q -> [Clip] -> DQ; a fold did its part before."""
    assert chosen.activation is not None
    value = scale_input(chain, site, value, chosen)
    return quantize_dequantize(chain, site, value, chosen.activation)


def scale_input(chain: Inserter, site: Site, value: ir.Value, chosen: SiteWeights) -> ir.Value:
    """Add x -> [Mul 1/s] -> [Sub offset], each unless a fold did it before.

    Nodes and constants are named after the chain's prefix.
    """
    graph, name = chain.graph, chain.prefix
    if chosen.smoothing is not None and not folds_scale(site):
        inverse = (1 / chosen.smoothing.astype(np.float64)).astype(np.float32)
        held = constant(graph, f"{name}.input_scale", by_channel(site, inverse))
        value = chain("Mul", value, held)
    offset = np.asarray(chosen.offset)
    if offset.any() and not folds_shift(site):
        shaped = by_channel(site, offset) if offset.ndim else offset
        value = chain("Sub", value, constant(graph, f"{name}.input_shift", shaped))
    return value


def quantize_dequantize(
    chain: Inserter, site: Site, value: ir.Value, activation: ActivationFormat
) -> ir.Value:
    """Add Q -> [Clip] -> DQ with one scalar scale and no zero point."""
    assert activation.scale is not None
    graph = chain.graph
    scale = constant(graph, f"{site.name}.activation_scale", np.float32(activation.scale))
    kind = FP8 if activation.grid == "fp8" else np.int8
    zero = constant(graph, f"{site.name}.zero_point", np.zeros((), kind))
    value = chain("QuantizeLinear", value, scale, zero)
    if activation.bits < 8:
        reach = 2 ** (activation.bits - 1)
        low = constant(graph, f"{site.name}.clip_low", np.int8(-reach))
        high = constant(graph, f"{site.name}.clip_high", np.int8(reach - 1))
        value = chain("Clip", value, low, high)
    return chain("DequantizeLinear", value, scale, zero)


def by_channel(site: Site, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values [C] in a shape that broadcasts over the site's input."""
    if site.op not in LINEAR_OPS:
        return values.reshape(1, -1, 1, 1)
    return values.reshape((1,) * site.channel_axis + (-1,))
