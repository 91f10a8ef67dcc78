"""Time sites alone, with and without their rounded inputs, on the shapes that a model runs them on.

A unit's sites are cut out of both graphs: what they read are inputs of an excerpt, fed with noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...calibrate.observers.reduce import values_by_name
from ...graph.io import graph_bytes
from ...graph.passes import IR_VERSION
from ...graph.sites import Site
from ...quantize.chains import Chain, copy_chain, find_chain
from ...runtime.sessions.open import disabled_in, open_session
from ...runtime.sessions.session import Array, Session
from ..onnxruntime.build import rewrite_graph
from ..onnxruntime.integers import Ranges
from .pairs import Pairs
from .units import TwoGraphs, Unit

# Of sites that are alike so many run in turn that their FP32 weights fill this: one alone would
# stay in the processor's caches, which the weights of a model do not.
TIMED_BYTES = 2**26
Clock = Callable[[], float]


def timed_sites(unit: Unit, both: TwoGraphs) -> list[Site]:
    """Return the sites of a unit that are timed for all of them, whole groups from the first on."""
    found: list[Site] = []
    held = 0
    for group in unit.groups:
        found += group
        held += sum(4 * int(np.prod(site.weight_shape)) for site in group if site.weight_shape)
        if held >= TIMED_BYTES:
            break
    return found


def excerpt(model: ir.Model, sites: Sequence[Site], both: TwoGraphs) -> ir.Model:
    """Return a model of the nodes of some sites, whose inputs and outputs are their ends.

    Raises:
        WorkspaceError: the graph has other tensors than the FP32 one.
    """
    graph = model.graph
    chains = [find_chain(graph, site, both.ends[site.name]) for site in sites]
    inside = {node for chain in chains for node in chain.nodes}
    ends = dict.fromkeys(chain.ends.output for chain in chains)
    values = values_by_name(graph)
    own = ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports), name="sites")
    inputs: dict[str, ir.Value] = {}

    def outer(name: str) -> ir.Value:
        if name not in inputs:
            old = values[name]
            kind = old.type or ir.TensorType(ir.DataType.FLOAT)
            inputs[name] = ir.Value(name=name, type=kind, shape=old.shape)
        return inputs[name]

    every = tuple(node for node in graph if node in inside)
    whole = Chain(sites[0], every, chains[0].output, chains[0].ends)
    copies, _ = copy_chain(whole, "", outer, hold=own)
    own.extend(copies)
    own.inputs.extend(inputs.values())
    made = {str(value.name): value for node in copies for value in node.outputs}
    for name in ends:
        made[name].type = made[name].type or ir.TensorType(ir.DataType.FLOAT)
        own.outputs.append(made[name])
    return ir.Model(own, ir_version=IR_VERSION)


@dataclass(frozen=True, slots=True)
class TimedForm:
    """Run the sites of a unit in one form, on all shapes and as often as a model does."""

    session: Session
    feeds: tuple[tuple[dict[str, Array], int], ...]

    def seconds(self, clock: Clock) -> float:
        """Return how long one image takes: each shape runs once, and counts so often."""
        total = 0.0
        for feeds, count in self.feeds:
            start = clock()
            self.session.run(feeds)
            total += count * (clock() - start)
        return total


@dataclass(slots=True)
class SiteTimer:
    """Time units of graphs by name; sessions are opened as they are needed, and kept."""

    units: Mapping[str, Unit]
    graphs: Mapping[str, TwoGraphs]
    ranges: Ranges
    clock: Clock = time.perf_counter
    forms: dict[str, tuple[TimedForm, TimedForm, float]] = field(default_factory=dict)
    rounds: int = 0

    def __call__(self, names: Sequence[str], rounds: int) -> Pairs:
        """Return the times of units together, FP32 and rounded, in turn."""
        opened = [self.opened(name) for name in names]
        plain, quantized = [], []
        for _ in range(rounds):
            self.rounds += 1
            sums = [0.0, 0.0]
            for fp32, rounded, share in opened:
                # Who comes first finds other caches than who comes second.
                turns = (0, 1) if self.rounds % 2 else (1, 0)
                for turn in turns:
                    form = (fp32, rounded)[turn]
                    sums[turn] += share * form.seconds(self.clock) * 1000
            plain.append(sums[0])
            quantized.append(sums[1])
        return Pairs(tuple(plain), tuple(quantized))

    def opened(self, name: str) -> tuple[TimedForm, TimedForm, float]:
        """Return both forms of a unit, each run once, and how many times the timed sites it has."""
        if name not in self.forms:
            unit = self.units[name]
            both = self.graphs[unit.graph]
            sites = timed_sites(unit, both)
            plain = excerpt(both.fp32, sites, both)
            quantized = excerpt(both.quantized, sites, both)
            rewrite_graph(quantized, self.ranges)
            forms = [opened_form(model, unit, both) for model in (plain, quantized)]
            for form in forms:
                form.seconds(self.clock)
            self.forms[name] = (forms[0], forms[1], len(unit.sites) / len(sites))
        return self.forms[name]


def opened_form(model: ir.Model, unit: Unit, both: TwoGraphs) -> TimedForm:
    """Open an excerpt as an engine is opened, with noise for each of the shapes."""
    data = graph_bytes(model)
    session = open_session(both.shapes.path, optimized=True, graph=data, disabled=disabled_in(data))
    rng = np.random.default_rng(0)
    kinds = {str(value.name): value.dtype for value in model.graph.inputs}
    feeds = []
    for axes, count in unit.runs.items():
        arrays: dict[str, Array] = {}
        for name in session.inputs:
            shape, kind = both.shapes.shape(name, dict(axes)), kinds[name] or ir.DataType.FLOAT
            is_float = kind == ir.DataType.FLOAT
            # Positions are indices into tables: all of them have the first.
            noise = rng.standard_normal(shape, np.float32) if is_float else np.zeros(shape)
            arrays[name] = noise.astype(kind.numpy(), copy=False)
        feeds.append((arrays, count))
    return TimedForm(session, tuple(feeds))
