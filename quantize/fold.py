"""Fold the scale and shift of an input's channels into the constants of what makes the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.reduce import Floats
from ..graph.builder import constant, constant_array
from ..graph.edit import add_to_bias
from ..graph.linears import gemm_transposes, site_node
from ..graph.sites import FoldPart, Site
from ..numerics.parts import made_in_parts, parts

# Norms with a scale and a bias a channel as their second and third input.
NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
)


def folds_scale(site: Site) -> bool:
    """Return whether something in front of `site` takes a scale a channel."""
    return site.fold is not None or site.producer_fold is not None


def folds_shift(site: Site) -> bool:
    """Return whether it takes a shift a channel too; a weight without a bias takes none."""
    return site.fold is not None or bool(site.producer_fold and site.producer_fold.subtract)


def holds_producer(graph: ir.Graph, site: Site) -> bool:
    """Return whether every initializer of the site's producer fold is in `graph`."""
    fold = site.producer_fold
    if fold is None:
        return False
    return all(part.initializer in graph.initializers for part in (*fold.divide, *fold.subtract))


def fold_into_producer(graph: ir.Graph, site: Site, smoothing: Floats, offset: Floats) -> None:
    """Make the site's input x / smoothing - offset, by its producer's initializers alone.

    Both [C]; `offset` is only subtracted where the producer takes a shift. Call it once for the
    sites that share an input, and before the producer's own weight is quantized.
    """
    assert site.producer_fold is not None
    for part in site.producer_fold.divide:
        change(graph, part, np.divide, smoothing)
    for part in site.producer_fold.subtract:
        change(graph, part, np.subtract, offset)


def fold_into_norm(
    graph: ir.Graph,
    node: ir.Node,
    smoothing: NDArray[np.floating],
    offset: NDArray[np.floating] | np.float32,
) -> None:
    """Make what the norm in front of `node` gives x / smoothing - offset, [C] both (or a scalar).

    New initializers are made: the exporter shares equal-valued ones between norms.
    """
    norm = norm_behind(node)
    for index, name, by in ((1, "scale", np.float32(0)), (2, "bias", offset)):
        value = norm.inputs[index]
        assert value is not None
        wide = constant_array(value).astype(np.float64)
        folded = wide / smoothing.astype(np.float64) - np.asarray(by, np.float64)
        label = f"{norm.name}.folded_{name}"
        norm.replace_input_with(index, constant(graph, label, folded.astype(np.float32)))


def norm_behind(node: ir.Node) -> ir.Node:
    """Return the norm whose output reaches `node` through its Q/DQ chain."""
    value = node.inputs[0]
    while value is not None:
        producer = value.producer()
        assert producer is not None
        if producer.op_type in NORMS:
            return producer
        value = producer.inputs[0]
    raise AssertionError(f"{node.name} has a fold but no norm in front")


def change(graph: ir.Graph, part: FoldPart, operation: np.ufunc, by: NDArray[np.floating]) -> None:
    """Divide a part of an initializer by `by` [C], or subtract it, in float64."""
    value = graph.initializers[part.initializer]
    changed = constant_array(value).astype(np.float32)
    where = [slice(None)] * changed.ndim
    where[part.axis] = slice(part.start, part.start + len(by))
    inside = changed[tuple(where)]
    shaped = by.astype(np.float64).reshape(
        [-1 if k == part.axis else 1 for k in range(inside.ndim)]
    )
    operand = np.broadcast_to(shaped, inside.shape)
    for rows in parts(inside):
        inside[rows] = operation(inside[rows].astype(np.float64), operand[rows])
    value.const_value = ir.tensor(changed, name=part.initializer)


@dataclass(frozen=True, slots=True)
class ChannelFold:
    """x / scale - shift for the sites that read x; `scale`, `shift` [C].

    `divides` and `subtracts` say what the producer takes for free.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    divides: bool
    subtracts: bool


def fold_channels(
    graph: ir.Graph, sites: Sequence[Site], folds: Sequence[tuple[Sequence[Site], ChannelFold]]
) -> None:
    """Change `graph`, whose sites are `sites`, for every group of sites that share an input.

    A group is named by its sites in the full graph; those that `graph` lacks do not count, parts
    of their producers that it has do.
    """
    here = {site.name: site for site in sites}
    shifted: list[tuple[Site, ChannelFold]] = []
    for group, folded in folds:
        fold_parts(graph, group[0], folded)
        found = [here[site.name] for site in group if site.name in here]
        if found:
            scale_input(graph, found, folded)
        for site in found:
            scale_weight(graph, site, folded)
            if np.any(folded.shift):
                shifted.append((site, folded))
    # Last, since a weight may be the producer of another group's input too.
    for site, folded in shifted:
        shift_output(graph, site, folded)


def fold_parts(graph: ir.Graph, site: Site, folded: ChannelFold) -> None:
    """Fold into what makes the input, as far as that lies in `graph`."""
    fold = site.producer_fold
    if fold is None or not folded.divides:
        return
    for part in held(graph, fold.divide):
        change(graph, part, np.divide, folded.scale)
    for part in held(graph, fold.subtract) if folded.subtracts else ():
        change(graph, part, np.subtract, folded.shift)


def held(graph: ir.Graph, parts: Sequence[FoldPart]) -> list[FoldPart]:
    return [part for part in parts if part.initializer in graph.initializers]


def scale_input(graph: ir.Graph, sites: Sequence[Site], folded: ChannelFold) -> None:
    """Put what the producer does not take into nodes in front of all readers."""
    first = sites[0]
    nodes = [site_node(graph, site) for site in sites]
    value = nodes[0].inputs[0]
    assert value is not None
    shape = (1,) * first.channel_axis + (-1,)
    steps = []
    if not folded.divides and np.any(folded.scale != 1):
        steps.append(("Mul", "input_scale", 1 / folded.scale))
    if not folded.subtracts and np.any(folded.shift):
        steps.append(("Sub", "input_shift", folded.shift))
    for op, name, by in steps:
        constant_by = constant(graph, f"{first.name}.{name}", by.astype(np.float32).reshape(shape))
        node = ir.node(op, [value, constant_by], name=f"{first.name}/{name}")
        made = node.outputs[0]
        made.name, made.type, made.shape = f"{first.name}/{name}:0", value.type, value.shape
        graph.insert_before(nodes[0], node)
        value = made
    for node in nodes:
        node.replace_input_with(0, value)


def scale_weight(graph: ir.Graph, site: Site, folded: ChannelFold) -> None:
    """Multiply the weight by the scale."""
    assert site.weight is not None
    value = graph.initializers[site.weight]
    by = folded.scale if gemm_transposes(site_node(graph, site)) else folded.scale[:, None]
    held = constant_array(value)
    factor = np.broadcast_to(by, held.shape)
    scaled = made_in_parts(held, lambda part: held[part].astype(np.float64) * factor[part])
    value.const_value = ir.tensor(scaled, name=site.weight)


def shift_output(graph: ir.Graph, site: Site, folded: ChannelFold) -> None:
    """Add the shift times the folded weight to the bias."""
    assert site.weight is not None
    node = site_node(graph, site)
    wide = constant_array(graph.initializers[site.weight]).astype(np.float64)
    addition = folded.shift @ (wide.T if gemm_transposes(node) else wide)
    if site.bias is not None and site.bias in graph.initializers:
        bias = graph.initializers[site.bias]
        total = constant_array(bias).astype(np.float64) + addition
        bias.const_value = ir.tensor(total.astype(np.float32), name=site.bias)
        return
    last = (1,) * site.channel_axis + (-1,)
    add_to_bias(graph, node.outputs[0], site.name, addition, last)
