"""Find out which graphs run for one image or sample, how often, and on which shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from ...calibrate.observers.reduce import values_by_name
from ...graph.io import graph_bytes, read_graph
from ...graph.linears import site_node
from ...graph.sites import Site, SiteMap, load_sites
from ...runtime.sessions.open import SLOW_OPTIMIZERS, fast_session, open_session
from ...samples.files import Arrays, GraphChain, load_sample, sample_files
from ...workspace.facts import Exported
from ..roofline.calls import GraphCall, generator_calls
from ..roofline.shapes import Axes, Shape


class Shapes(Protocol):
    """Tell the shapes of a graph's tensors from the sizes of its axes."""

    @property
    def path(self) -> Path: ...

    def shape(self, tensor: str, axes: Axes) -> Shape: ...


@dataclass(frozen=True, slots=True)
class SeenShapes:
    """Hold the shapes that tensors had in one run of a graph."""

    path: Path
    seen: Mapping[str, Shape]

    def shape(self, tensor: str, axes: Axes) -> Shape:
        """Return the shape of a tensor that a site reads, or that the graph does."""
        return self.seen[tensor]


Called = tuple[Sequence[GraphCall], Mapping[str, Shapes]]


def calls_of_one(model: Exported, samples: Path) -> Called:
    """Return what runs for one image of a generator, or for the first sample of calibration.

    Raises:
        BuildError: the shape of an output is not known.
    """
    if model.kind == "generator":
        return generator_calls(model.folder, 1)
    site_map: SiteMap = load_sites(model.folder)
    names = site_map.graphs
    chain = GraphChain.open(model.folder, names, session=fast_session)
    sample = load_sample(sample_files(samples)[0])
    outputs = chain.run(sample)
    shapes = {
        name: seen_shapes(
            model.folder / f"{name}.onnx",
            site_map.of_graph(name),
            chain.feeds(name, sample, outputs),
        )
        for name in names
    }
    return [GraphCall(name, (), 1) for name in names], shapes


def seen_shapes(path: Path, sites: Sequence[Site], feeds: Arrays) -> SeenShapes:
    """Run a graph, and return the shapes of what its sites read, without bringing it out."""
    model = read_graph(path)
    graph, values = model.graph, values_by_name(model.graph)
    read = {
        str(value.name): value
        for site in sites
        for value in site_node(graph, site).inputs
        if value is not None and not value.is_initializer()
    }
    read |= {
        site.position_input: values[site.position_input] for site in sites if site.position_input
    }
    inside = {name: value for name, value in read.items() if name not in feeds}
    for name, value in inside.items():
        node = ir.node("Shape", [value], name=f"{name}/seen")
        node.outputs[0].name = f"{name}/seen"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    session = open_session(
        path, optimized=True, lean=True, graph=graph_bytes(model), disabled=SLOW_OPTIMIZERS
    )
    found = session.run(feeds, [f"{name}/seen" for name in inside]) if inside else {}
    seen: dict[str, Shape] = {name: tuple(value.shape) for name, value in feeds.items()}
    seen |= {name: tuple(map(int, found[f"{name}/seen"])) for name in inside}
    return SeenShapes(path, seen)
