"""The site map: what can be quantized in the graphs of a model, and where a scale goes for free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..numerics.scheme import Name, require_unique
from ..workspace.files import decode_json

# Roles of products that no plan quantizes, and that stay in float32: Haar filters and the resizes
# between scales are no weights, and the others decide codes, or look them up: the codes that a
# nearest one is searched among, and the convolutions (phi) that refine those of a scale.
EXACT_ROLES = ("codes", "phi", "resize")
CONSTANT_ROLES = ("patcher", *EXACT_ROLES)
# Products of two activations: of queries and keys, of the softmax and values.
PRODUCT_ROLES = ("bmm_qk", "bmm_pv")
NO_WEIGHT = "-"  # the format of such a product's weight, as reports say it
SITES_FILE = "sites.json"
SITES_VERSION = "2"  # version of sites.json; an export with another one is made again
Axis = Annotated[int, msgspec.Meta(ge=0, le=7)]
# A count of positions or channels, or a side: the limit is far above any model's, and arrays of
# this size still fit.
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class FoldPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the elements of an initializer that belong to a site's input channels, in their order.

    ``[start, start + channels)`` along ``axis``, all of the other axes.
    """

    initializer: Name
    axis: Axis
    start: Annotated[int, msgspec.Meta(ge=0)]


class ProducerFold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name the producer's weights into which a site's scale and shift, x / s - p, fold for free.

    Divide the elements of ``divide`` by s, then subtract p from those of ``subtract``, which are
    among the divided ones, in every graph that holds these initializers: one of them may be
    computed in another graph than the site's, as VAR's modulation is.
    """

    divide: tuple[FoldPart, ...]
    subtract: tuple[FoldPart, ...]


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one quantizable product: a Conv, MatMul or Gemm, or a product of two activations.

    ``weight`` is the ONNX initializer (None for a product of activations); ``channel_axis`` is the
    channel axis of the input tensor (1 for images). ``fold`` names where a per-channel scale of the
    input goes for free: the initializers of a norm's weight and bias, or None: an explicit Mul.
    ``producer_fold`` says it where parts of larger initializers take it. ``token_axis`` is the
    axis of the input along which positions lie, and ``position_input`` the graph's input or value
    with their numbers (None: they count from 0). Where all rows of a calibrated graph have such
    numbers, they are below ``positions``; a graph ``of_all_positions`` is given each
    once, in order.
    ``excluded`` says why the method leaves the site in high precision, None if it does not.
    """

    name: Name
    graph: Name
    role: Name
    op: Name
    node: Name
    weight: Name | None
    bias: Name | None
    input: Name
    output: Name
    weight_shape: tuple[Size, ...]
    channel_axis: Annotated[int, msgspec.Meta(ge=-8, le=7)] = 1
    shares_input_with: tuple[Name, ...] = ()
    fold: tuple[Name, Name] | None = None
    token_axis: Axis | None = None
    position_input: Name | None = None
    positions: Size | None = None
    of_all_positions: bool = False
    producer_fold: ProducerFold | None = None
    excluded: str | None = None

    @property
    def knows_positions(self) -> bool:
        """Return whether the input can have a scale per token, because its graph is calibrated."""
        numbered = self.of_all_positions or self.positions is not None
        return numbered and self.token_axis is not None


def may_be_planned(site: Site) -> bool:
    """Return whether the site has a trained weight."""
    return site.weight is not None and site.role not in CONSTANT_ROLES


Verdict = Literal["INT8", "FP8", "INT8 or FP8", "high precision", "not buildable"]


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what a node of a graph may become on each target, and why it is not INT8.

    Targets are "onnxruntime" (its CPU sessions) and compute capabilities of TensorRT for RTX.
    """

    graph: str
    node: str
    op: str
    domain: str = ""
    targets: dict[str, Verdict]
    reason: str | None = None


class SiteMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold all sites of a model, in graph order, and the names of the calibrated graphs.

    Other graphs of a generator may have sites of the same names. `graphs` are in the order that
    they run; `nodes` has verdicts on the nodes of custom graphs. Version 1 did not say which sites
    read all positions of a sequence.
    """

    sites: tuple[Site, ...]
    graphs: tuple[Name, ...] = ("encoder", "decoder")
    nodes: tuple[NodeVerdict, ...] = ()
    schema: Literal["arvg-trt/sites/v2"] = "arvg-trt/sites/v2"

    def __post_init__(self) -> None:
        require_unique("graph", self.graphs)
        require_unique("site", (f"{site.name} of the graph {site.graph}" for site in self.sites))
        known = {(site.name, site.graph) for site in self.sites}
        for site in self.sites:
            lost = [n for n in site.shares_input_with if (n, site.graph) not in known]
            if lost:
                raise ValueError(f"{site.name} shares its input with {lost[0]}, which is no site")

    def of_graph(self, graph: str) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.graph == graph)

    @property
    def calibrated(self) -> SiteMap:
        """Return the site map with the sites of calibrated graphs alone, which a plan covers."""
        sites = tuple(site for site in self.sites if site.graph in self.graphs)
        return msgspec.structs.replace(self, sites=sites)


def split_graphs(site_map: SiteMap, shared: Collection[str]) -> tuple[SiteMap, SiteMap]:
    """Split a generator's map: the `shared` graphs are calibrated, or its tokenizer's alone.

    The first keeps the sites of all other graphs, which take over scales; the second has its own.
    """
    own = tuple(graph for graph in site_map.graphs if graph in shared)
    apart = tuple(graph for graph in site_map.graphs if graph not in shared)
    rest = tuple(site for site in site_map.sites if site.graph not in apart)
    return (
        msgspec.structs.replace(site_map, graphs=own, sites=rest),
        msgspec.structs.replace(site_map, graphs=apart).calibrated,
    )


def by_input(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Return the sites that read the same tensor, under the name of the first."""
    readers: dict[str, list[Site]] = {}
    for site in sites:
        readers.setdefault(site.input, []).append(site)
    return {group[0].name: group for group in readers.values()}


def load_sites(export: Path) -> SiteMap:
    """Return the site map of an export, each of whose names is in its graphs.

    Raises:
        WorkspaceError: it cannot be read, or names what is not there.
    """
    from .sites_check import check_sites

    found = decode_json(export / SITES_FILE, SiteMap, do="run `arvg-trt export` again")
    check_sites(export, found)
    return found
