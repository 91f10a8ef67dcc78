"""Give the FP32 graph the folds of a Q/DQ graph, so that both hold the same tensors.

A scale of a site's input, x / s - p, may lie in the constants of what computes x. Here the same is
done to FP32, and taken back in front of the readers as (x' + p) s: what it computes stays, and
every tensor means what that of the same name in the Q/DQ graph means. Where a site's own weight
takes the scale, its output is scaled in its place, so that large weights stay in their file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.observers.reduce import values_by_name
from ...graph.builder import constant, constant_array
from ...graph.edit import insert_behind
from ...graph.io import load_graph
from ...graph.linears import LINEAR_OPS, site_node, site_weight
from ...graph.sites import FoldPart, Site, by_input
from ...numerics.qparams import input_offset
from ...numerics.scheme import SitePlan
from ...quantize.chains import Ends, ends_of
from ...quantize.fold import change, fold_into_norm, folds_scale, folds_shift
from ...quantize.fold_check import AppliedFold
from ...workspace.files import open_tensors

Floats = NDArray[np.float32]
Tables = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class OutputScale:
    """Hold what folds do to the output y of a site: y / `scale` - `shift`, both [O]."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True, slots=True)
class AlignedGraph:
    """Hold the FP32 graph with a Q/DQ graph's folds, and the ends of its sites.

    `scaled` has by site what folds do to its output.
    """

    model: ir.Model
    ends: Mapping[str, Ends]
    scaled: Mapping[str, OutputScale] = field(default_factory=dict)

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph


def align(
    fp32: Path, quantized: Path, sites: Sequence[Site], entries: Mapping[str, SitePlan]
) -> AlignedGraph:
    """Return the graph in the file `fp32`, with the folds of the one in `quantized`."""
    model, other = load_graph(fp32), load_graph(quantized).graph
    graph = model.graph
    ends = {site.name: ends_of(graph, site) for site in sites}
    producers = {name: site for site in sites for name in (site.weight, site.bias) if name}
    outputs: dict[str, OutputScale] = {}
    for fold in applied_folds(graph, other, sites, entries, quantized.parent):
        first = fold.sites[0]
        if first.fold is not None:
            fold_into_norm(graph, site_node(graph, first), fold.smoothing, fold.offset)
        elif first.producer_fold is not None:
            own = first.producer_fold
            for part in own.divide:
                scale_part(graph, part, producers, outputs, fold.smoothing, None)
            for part in own.subtract:
                scale_part(graph, part, producers, outputs, None, fold.offset)
        fold.take_back(graph)
    values = values_by_name(graph)
    for name, output in outputs.items():
        site = next(site for site in sites if site.name == name)
        shape = (-1,) if site.op in LINEAR_OPS else (-1, 1, 1)
        value = values[ends[name].output]
        steps = (("Mul", "scale", 1 / output.scale), ("Sub", "shift", output.shift))
        for op, label, by in steps:
            held = constant(graph, f"{name}.aligned_{label}", by.reshape(shape).astype(np.float32))
            value = insert_behind(graph, value, op, held, f"{name}/aligned_{label}")
    return AlignedGraph(model, ends, outputs)


def scale_part(
    graph: ir.Graph,
    part: FoldPart,
    producers: Mapping[str, Site],
    outputs: dict[str, OutputScale],
    scale: Floats | None,
    shift: Floats | None,
) -> None:
    """Change a constant in front of a norm's readers, or note it for the output of a site."""
    site = producers.get(part.initializer)
    if site is None:
        if part.initializer not in graph.initializers:
            return  # it lies in another graph, whose outputs are fed
        by = shift if scale is None else scale
        assert by is not None
        change(graph, part, np.divide if shift is None else np.subtract, by)
        return
    channels = output_channels(graph, site)
    known = outputs.setdefault(
        site.name, OutputScale(np.ones(channels, np.float32), np.zeros(channels, np.float32))
    )
    if scale is not None and part.initializer == site.weight:
        known.scale[part.start : part.start + len(scale)] = scale
    if shift is not None:
        known.shift[part.start : part.start + len(shift)] = shift


def output_channels(graph: ir.Graph, site: Site) -> int:
    """Return how many channels the output of a site has."""
    return int(site_weight(graph, site).shape[0])


def applied_folds(
    fp32: ir.Graph,
    quantized: ir.Graph,
    sites: Sequence[Site],
    entries: Mapping[str, SitePlan],
    folder: Path,
) -> list[AppliedFold]:
    """Return the folds that a Q/DQ graph has, by its tables and by the nodes that it lacks."""
    do = "run `arvg-trt quantize` again"
    nodes = {str(node.name): node for node in quantized}
    found = []
    with open_tensors(folder / "weights.safetensors", do=do) as file:
        names = set(file.keys())

        def table(name: str, kind: str) -> Floats | None:
            key = f"{name}.{kind}"
            return file.get_tensor(key).astype(np.float32) if key in names else None

        planned = [s for s in sites if entries[s.name].activation is not None and s.weight]
        for members in by_input(planned).values():
            first = members[0]
            if not folds_scale(first):
                continue
            scale, shift = table(first.name, "smoothing"), table(first.name, "center")
            channels = int(site_weight(fp32, first).shape[1])
            explicit = explicit_steps(nodes, first, channels)
            if scale is None or "scale" in explicit:
                scale = None
            if shift is None:
                offset = input_offset(entries[first.name].activation)
                sub = f"{first.name}/Sub" in nodes
                shift = None if sub or not offset else np.full(1, offset, np.float32)
            elif "shift" in explicit:
                shift = None
            if (scale is None and shift is None) or (not folds_shift(first) and scale is None):
                continue
            scale = np.ones(channels, np.float32) if scale is None else scale
            shift = np.zeros(1, np.float32) if shift is None else shift
            whole = np.broadcast_to(shift, scale.shape).astype(np.float32)
            readers = [s for s in sites if s.input == first.input and s.weight]
            found.append(
                AppliedFold((first, *(s for s in readers if s is not first)), scale, whole)
            )
    return found


def explicit_steps(nodes: Mapping[str, ir.Node], site: Site, channels: int) -> set[str]:
    """Return which of a site's scale and shift a channel have a node of their own."""
    found = set()
    name = site.name
    for kind, ops in (("scale", ("Mul",)), ("shift", ("Sub",))):
        labels = [f"{name}/input_{kind}", *(f"{name}/{op}" for op in ops)]
        labels += [f"{name}/channels/{op}" for op in ops]
        for label in labels:
            if label not in nodes or len(nodes[label].inputs) < 2:
                continue
            held = nodes[label].inputs[1]
            if held is None or held.const_value is None:
                continue
            shape = constant_array(held).shape
            axis = -1 if site.op in LINEAR_OPS else 1
            by_channel = len(shape) > 1 and shape[axis] == channels
            if by_channel and f"input_{kind}" in str(held.name):
                found.add(kind)
    return found
