"""Check that every name in sites.json exists in the graphs: nodes, initializers and tensors.

A site map says where scales go. One of other graphs would leave sites out, or scale the wrong
weight, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ..errors import WorkspaceError
from .sites import FoldPart, Site, SiteMap


@dataclass(frozen=True, slots=True)
class GraphNames:
    """Hold the nodes of a graph by name, the shapes of its initializers, and its tensor names."""

    nodes: Mapping[str, onnx.NodeProto]
    initializers: Mapping[str, tuple[int, ...]]
    tensors: frozenset[str]


def check_sites(export: Path, site_map: SiteMap) -> None:
    """Check every name and range of a site map against the graphs of its folder.

    Raises:
        WorkspaceError: a graph, node, initializer or tensor that is not there, a weight of another
            shape, an axis or a part beyond it; names the site.
    """
    graphs: dict[str, GraphNames] = {}
    for graph in dict.fromkeys((*(site.graph for site in site_map.sites), *site_map.graphs)):
        path = export / f"{graph}.onnx"
        if not path.is_file():
            raise refusal(export, f"the graph {graph} is gone: no {path.name}")
        graphs[graph] = read_names(path)
    for site in site_map.sites:
        for problem in problems_of(site, graphs):
            raise refusal(export, f"{site.name}: {problem}")


def refusal(export: Path, what: str) -> WorkspaceError:
    return WorkspaceError(what, where=str(export / "sites.json"), do="run `arvg-trt export` again")


def read_names(path: Path) -> GraphNames:
    """Return the names of a graph; weights stay in their file.

    Raises:
        WorkspaceError: it is no ONNX.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise WorkspaceError(
            "is no ONNX file", where=str(path), do="run `arvg-trt export` again"
        ) from error
    bodies = list(with_bodies(graph))
    made = (name for body in bodies for node in body.node for name in node.output)
    inputs = (value.name for body in bodies for value in body.input)
    shapes = {t.name: tuple(t.dims) for body in bodies for t in body.initializer}
    return GraphNames(
        nodes={node.name: node for body in bodies for node in body.node},
        initializers=shapes,
        tensors=frozenset((*made, *inputs, *shapes)),
    )


def with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Return the graph and those inside its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else ():
                yield from with_bodies(body)


def problems_of(site: Site, graphs: Mapping[str, GraphNames]) -> Iterator[str]:
    """Yield what a site map says of a site and the graphs do not have."""
    own = graphs[site.graph]
    node = own.nodes.get(site.node)
    if node is None:
        yield f"{site.graph}.onnx has no node {site.node}"
        return
    if node.op_type != site.op:
        yield f"the node {site.node} is a {node.op_type}, no {site.op}"
    if site.input not in node.input:
        yield f"the node {site.node} does not read {site.input}"
    for kind, name in (("weight", site.weight), ("bias", site.bias)):
        if name is not None and name not in own.initializers:
            yield f"{site.graph}.onnx has no {kind} {name}"
    if site.weight is not None and own.initializers.get(site.weight) != site.weight_shape:
        shape = own.initializers.get(site.weight, ())
        yield f"{site.weight} has the shape {list(shape)}, not {list(site.weight_shape)}"
    for name in (site.output, site.position_input):
        if name is not None and name not in own.tensors:
            yield f"{site.graph}.onnx has no tensor {name}"
    for name in site.fold or ():
        if name not in own.initializers:
            yield f"{site.graph}.onnx has no {name} to fold into"
    if site.producer_fold is not None:
        for part in (*site.producer_fold.divide, *site.producer_fold.subtract):
            yield from problems_of_part(part, graphs)


def problems_of_part(part: FoldPart, graphs: Mapping[str, GraphNames]) -> Iterator[str]:
    """Yield what is wrong with a part of an initializer: in no graph, or beyond its end."""
    found = (graph.initializers.get(part.initializer) for graph in graphs.values())
    shapes = [shape for shape in found if shape is not None]
    if not shapes:
        yield f"no graph has {part.initializer} to fold into"
    for shape in shapes:
        if part.axis >= len(shape) or part.start >= shape[part.axis]:
            yield (
                f"{part.initializer} of shape {list(shape)} has no part at {part.start} of axis "
                f"{part.axis}"
            )
