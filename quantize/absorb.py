"""Scales and shifts of channels, absorbed into a graph that computes the same as before.

A site's input x becomes x / s - p: in what makes it, where the site map says that it takes that,
else by a Mul and a Sub. The site's weight takes s, its bias p W. What makes the input may lie in
another graph, as VAR's modulation does: every graph of a model is given to `absorb`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.reduce import constant, initializer_array
from ..graph.sites import FoldPart, Site
from .fold import change
from .qdq.linear import add_to_bias
from .qdq.nodes import gemm_transposes
from .ranges import site_node

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Absorption:
    """x / scale - shift for the sites that read x; `scale`, `shift` [C].

    `divides` and `subtracts` say what the producer takes for free.
    """

    scale: Floats
    shift: Floats
    divides: bool
    subtracts: bool


def absorb(
    graph: ir.Graph, sites: Sequence[Site], absorptions: Sequence[tuple[Sequence[Site], Absorption]]
) -> None:
    """Change `graph`, whose sites are `sites`, for every group of sites that share an input.

    A group is named by its sites in the full graph; those that `graph` lacks do not count, parts
    of their producers that it has do.
    """
    here = {site.name: site for site in sites}
    shifted: list[tuple[Site, Absorption]] = []
    for group, absorbed in absorptions:
        fold_parts(graph, group[0], absorbed)
        found = [here[site.name] for site in group if site.name in here]
        if found:
            scale_input(graph, found, absorbed)
        for site in found:
            scale_weight(graph, site, absorbed)
            if np.any(absorbed.shift):
                shifted.append((site, absorbed))
    # Last, since a weight may be the producer of another group's input too.
    for site, absorbed in shifted:
        shift_output(graph, site, absorbed)


def fold_parts(graph: ir.Graph, site: Site, absorbed: Absorption) -> None:
    """The producer's share, as far as it lies in `graph`."""
    fold = site.producer_fold
    if fold is None or not absorbed.divides:
        return
    for part in held(graph, fold.divide):
        change(graph, part, np.divide, absorbed.scale)
    for part in held(graph, fold.subtract) if absorbed.subtracts else ():
        change(graph, part, np.subtract, absorbed.shift)


def held(graph: ir.Graph, parts: Sequence[FoldPart]) -> list[FoldPart]:
    return [part for part in parts if part.initializer in graph.initializers]


def scale_input(graph: ir.Graph, sites: Sequence[Site], absorbed: Absorption) -> None:
    """What the producer does not take, once in front of all readers."""
    first = sites[0]
    nodes = [site_node(graph, site) for site in sites]
    value = nodes[0].inputs[0]
    assert value is not None
    shape = (1,) * first.channel_axis + (-1,)
    steps = []
    if not absorbed.divides and np.any(absorbed.scale != 1):
        steps.append(("Mul", "input_scale", 1 / absorbed.scale))
    if not absorbed.subtracts and np.any(absorbed.shift):
        steps.append(("Sub", "input_shift", absorbed.shift))
    for op, name, by in steps:
        constant_by = constant(graph, f"{first.name}.{name}", by.astype(np.float32).reshape(shape))
        node = ir.node(op, [value, constant_by], name=f"{first.name}/{name}")
        made = node.outputs[0]
        made.name, made.type, made.shape = f"{first.name}/{name}:0", value.type, value.shape
        graph.insert_before(nodes[0], node)
        value = made
    for node in nodes:
        node.replace_input_with(0, value)


def scale_weight(graph: ir.Graph, site: Site, absorbed: Absorption) -> None:
    """W s instead of W."""
    assert site.weight is not None
    value = graph.initializers[site.weight]
    by = absorbed.scale if gemm_transposes(site_node(graph, site)) else absorbed.scale[:, None]
    wide = initializer_array(value).astype(np.float64) * by
    value.const_value = ir.tensor(wide.astype(np.float32), name=site.weight)


def shift_output(graph: ir.Graph, site: Site, absorbed: Absorption) -> None:
    """p W into the bias, W the absorbed weight."""
    assert site.weight is not None
    node = site_node(graph, site)
    wide = initializer_array(graph.initializers[site.weight]).astype(np.float64)
    addition = absorbed.shift @ (wide.T if gemm_transposes(node) else wide)
    if site.bias is not None and site.bias in graph.initializers:
        bias = graph.initializers[site.bias]
        total = initializer_array(bias).astype(np.float64) + addition
        bias.const_value = ir.tensor(total.astype(np.float32), name=site.bias)
        return
    last = (1,) * site.channel_axis + (-1,)
    add_to_bias(graph, node.outputs[0], site, addition, last)
