"""Group the sites of graphs that are computed alike: they take the same time, and get one verdict.

Sites that read one tensor share its rounding, and stay together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ...graph.io import read_graph
from ...graph.linears import site_node
from ...graph.sites import Site, SiteMap, by_input, load_sites
from ...numerics.scheme import Plan, SitePlan
from ...quantize.chains import Ends, ends_of
from ...runtime.sessions.open import fast_session
from ...samples.files import GraphChain, load_sample, sample_files
from ...workspace.facts import Exported
from ..onnxruntime.matmul_integer import match_input
from ..roofline.calls import GraphCall, generator_calls
from ..roofline.shapes import GraphShapes, Shape
from .facts import nothing_rounded

# Shapes of one site's inputs that are timed, of more those in the middle of as many parts.
MOST_SHAPES = 4
Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """Hold sites of a graph that are computed alike, and how often on which shapes.

    `groups` are of sites that read one tensor. `runs` has by the sizes of the graph's axes how
    often they run for one image.
    """

    name: str
    graph: str
    groups: tuple[tuple[Site, ...], ...]
    runs: Mapping[tuple[tuple[str, int], ...], int]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(site.name for group in self.groups for site in group)


@dataclass(frozen=True, slots=True)
class TwoGraphs:
    """Hold a graph in FP32 and with rounded inputs, and the ends of the sites in both."""

    fp32: ir.Model
    quantized: ir.Model
    shapes: GraphShapes
    ends: Mapping[str, Ends] = field(default_factory=dict)

    @classmethod
    def read(
        cls, export: Path, source: Path, sites: Sequence[Site], shapes: GraphShapes
    ) -> TwoGraphs:
        """Read both files; the ends are those of the `sites`."""
        fp32 = read_graph(export)
        ends = {site.name: ends_of(fp32.graph, site) for site in sites}
        return cls(fp32, read_graph(source), shapes, ends)


def calls_of_one(
    model: Exported, samples: Path
) -> tuple[Sequence[GraphCall], Mapping[str, GraphShapes]]:
    """Return what runs for one image of a generator, or for the first sample of calibration.

    Raises:
        BuildError: the shape of an output is not known.
    """
    if model.kind == "generator":
        return generator_calls(model.folder, 1)
    names = load_sites(model.folder).graphs
    chain = GraphChain.open(model.folder, names, session=fast_session)
    sample = load_sample(sample_files(samples)[0])
    outputs = chain.run(sample)
    graphs = {name: GraphShapes.read(model.folder / f"{name}.onnx") for name in names}
    calls = []
    for name in names:
        feeds = chain.feeds(name, sample, outputs)
        axes = graphs[name].axes({key: value.shape for key, value in feeds.items()})
        calls.append(GraphCall(name, tuple(sorted(axes.items())), 1))
    return calls, graphs


def rounded_sites(source: Path, sites: Sequence[Site], plan: Plan) -> list[Site]:
    """Return the sites of a Q/DQ graph whose inputs a plan rounds and the graph does."""
    entries: Mapping[str, SitePlan] = {entry.name: entry for entry in plan.sites}
    wanted = [s for s in sites if s.name in entries and entries[s.name].activation is not None]
    if not wanted:
        return []
    graph = read_graph(source).graph
    return [site for site in wanted if match_input(site_node(graph, site)) is not None]


def require_rounded(source: Path, site_map: SiteMap, plan: Plan) -> dict[str, list[Site]]:
    """Return the sites with rounded inputs by graph, of graphs that have some.

    Raises:
        BuildError: there are none, so that there is nothing to time.
    """
    names = dict.fromkeys(site.graph for site in site_map.sites)
    found = {
        name: rounded_sites(source / f"{name}.onnx", site_map.of_graph(name), plan)
        for name in names
        if (source / f"{name}.onnx").is_file()
    }
    found = {name: sites for name, sites in found.items() if sites}
    if not found:
        raise nothing_rounded(plan)
    return found


def find_units(
    graph: str, both: TwoGraphs, sites: Sequence[Site], plan: Plan, calls: Sequence[GraphCall]
) -> list[Unit]:
    """Return the sites of a graph in groups that are computed alike, in graph order."""
    entries = {entry.name: entry for entry in plan.sites}
    own = [call for call in calls if call.graph == graph]
    alike: dict[object, list[tuple[Site, ...]]] = {}
    runs: dict[object, Mapping[tuple[tuple[str, int], ...], int]] = {}
    for group in by_input(sites).values():
        counted = Counter[tuple[Shapes, ...]]()
        axes: dict[tuple[Shapes, ...], tuple[tuple[str, int], ...]] = {}
        for call in own:
            shapes = tuple(input_shapes(both, site, call) for site in group)
            counted[shapes] += call.runs
            axes.setdefault(shapes, call.axes)
        forms = tuple(form_of(both.quantized.graph, site, entries[site.name]) for site in group)
        key = (forms, tuple(counted.items()))
        alike.setdefault(key, []).append(tuple(group))
        runs[key] = {axes[shapes]: count for shapes, count in few(counted).items()}
    return [
        Unit(f"{graph}/{groups[0][0].name}", graph, tuple(groups), runs[key])
        for key, groups in alike.items()
    ]


def input_shapes(both: TwoGraphs, site: Site, call: GraphCall) -> Shapes:
    """Return the shapes of what a site's product reads in a run."""
    ends = both.ends[site.name].inputs
    names = [name for name in ends if name != site.position_input]
    return tuple(both.shapes.shape(name, dict(call.axes)) for name in names)


def form_of(graph: ir.Graph, site: Site, entry: SitePlan) -> tuple[object, ...]:
    """Return what decides how a site is computed, beside the shapes of its inputs."""
    node = site_node(graph, site)
    attributes = sorted(f"{name}={value.value}" for name, value in node.attributes.items())
    bits = [form and form.bits for form in (entry.weight, entry.activation, entry.other)]
    granularity = entry.activation and entry.activation.granularity
    return (node.op_type, site.weight_shape, tuple(bits), granularity, tuple(attributes))


def few(counted: Mapping[tuple[Shapes, ...], int]) -> dict[tuple[Shapes, ...], int]:
    """Return at most `MOST_SHAPES` of the shapes; each stands for the runs of those near it."""
    ordered = sorted(counted)
    if len(ordered) <= MOST_SHAPES:
        return dict(counted)
    found = {}
    for k in range(MOST_SHAPES):
        part = ordered[k * len(ordered) // MOST_SHAPES : (k + 1) * len(ordered) // MOST_SHAPES]
        found[part[len(part) // 2]] = sum(counted[shapes] for shapes in part)
    return found
