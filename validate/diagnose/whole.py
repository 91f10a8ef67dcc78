"""Measure the outputs of a graph when some of its sites are quantized, or are raised to FP32's.

One session serves many runs: each site has both chains, and a flag that a run feeds chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...calibrate.observers.reduce import values_by_name
from ...errors import AccuracyError
from ...graph.builder import constant
from ...graph.io import graph_bytes, load_graph
from ...graph.passes import remove_unused
from ...graph.sites import Site
from ...quantize.chains import Chain, find_chain, replace, switch
from ...quantize.search.sensitivity import target_outputs
from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from ...samples.files import Array
from .alignment import AlignedGraph
from .noise import BucketedNoise

Feeds = Callable[[], Iterable[dict[str, Array]]]
Tick = Callable[[int, int], None]


class Targets:
    """The outputs of a graph at which its error is measured, and the squares of their errors.

    Logits, where there are any; of a graph that gives codes what its last product gives; else all
    floats. A masked token's -inf has no part in it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def of(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: outputs[name] for name in self.names}

    def compare(
        self, wanted: Mapping[str, Array], found: Mapping[str, Array], totals: Collection[Totals]
    ) -> None:
        """Add the error of every target to each of `totals`."""
        for total in totals:
            total.add(wanted, found)


class Totals:
    """Add up the error of all targets of a graph over its runs."""

    def __init__(self, names: Sequence[str]) -> None:
        self.by_name = {name: BucketedNoise() for name in names}

    def add(self, wanted: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        """Add one run.

        Raises:
            AccuracyError: FP32 itself gives NaN.
        """
        for name, total in self.by_name.items():
            exact = wanted[name].astype(np.float64)
            if np.isnan(exact).any():
                raise AccuracyError(
                    f"FP32's own {name} has NaN", do="look at the samples, and export again"
                )
            counted = np.isfinite(exact)
            exact = np.where(counted, exact, 0)
            with np.errstate(invalid="ignore", over="ignore"):
                error = np.where(counted, found[name].astype(np.float64) - exact, 0)
                total.add(np.square(exact).ravel(), np.square(error).ravel())

    @property
    def relative(self) -> float:
        """Return the noise as a share of the signal, mean over the targets."""
        found = [total.relative for total in self.by_name.values()]
        return math.inf if math.inf in found else math.fsum(found) / len(found)


def add_targets(graph: ir.Graph, sites: Sequence[Site]) -> tuple[str, ...]:
    """Return the targets of a graph, made outputs where they are none, and its only outputs."""
    weighty = [site for site in sites if site.weight is not None]
    names = target_outputs(graph, weighty[-1] if weighty else None)
    values = values_by_name(graph)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
    return tuple(names)


def open_targets(path: Path, sites: Sequence[Site], threads: int = 0) -> tuple[Session, Targets]:
    """Open a graph as it is written, with its targets as its outputs."""
    model = load_graph(path)
    names = add_targets(model.graph, sites)
    return open_changed(path, model, threads), Targets(names)


def open_changed(path: Path, model: ir.Model, threads: int) -> Session:
    model.graph.sort()
    remove_unused(model.graph)
    data = graph_bytes(model)
    return open_session(path, optimized=False, lean=True, mapped=True, graph=data, threads=threads)


def flag_name(site: str) -> str:
    return f"{site}:flag"


def measure_alone(
    path: Path,
    aligned: AlignedGraph,
    chains: Sequence[Chain],
    sites: Sequence[Site],
    feeds: Feeds,
    tick: Tick,
    threads: int = 0,
) -> dict[str, float]:
    """Return by site the relative noise at the graph's targets with this site alone quantized.

    The graph at `path` is FP32's, `aligned` the same one, which is changed; `chains` are the
    sites' in the Q/DQ graph. `tick` is called with the runs done and of all.
    """
    graph = aligned.graph
    targets = add_targets(graph, sites)
    for number, chain in enumerate(chains):
        own = find_chain(graph, chain.site, chain.ends)
        flag = constant(graph, flag_name(chain.site.name), np.asarray(False))
        graph.inputs.append(flag)
        switch(graph, own, chain, flag, f"alone{number}:")
    session = open_changed(path, aligned.model, threads)
    totals = {chain.site.name: Totals(targets) for chain in chains}
    runs = list(enumerate(feeds()))
    for number, fed in runs:
        wanted = session.run(fed)
        for done, chain in enumerate(chains):
            name = chain.site.name
            totals[name].add(wanted, session.run({**fed, flag_name(name): np.asarray(True)}))
            tick(number * len(chains) + done + 1, len(runs) * len(chains))
    return {name: total.relative for name, total in totals.items()}


def raised_session(
    path: Path,
    aligned: AlignedGraph,
    raised: Sequence[Site],
    sites: Sequence[Site],
    threads: int = 0,
) -> tuple[Session, Targets]:
    """Open the Q/DQ graph at `path` with FP32's products at some of its sites."""
    model = load_graph(path)
    names = add_targets(model.graph, sites)
    for number, site in enumerate(raised):
        ends = aligned.ends[site.name]
        own = find_chain(model.graph, site, ends)
        replace(model.graph, own, find_chain(aligned.graph, site, ends), f"raised{number}:")
    return open_changed(path, model, threads), Targets(names)


def measure_raised(reference: tuple[Session, Targets], session: Session, feeds: Feeds) -> float:
    """Return the relative noise at the targets of a changed Q/DQ graph, beside FP32's."""
    fp32, targets = reference
    total = Totals(targets.names)
    for fed in feeds():
        total.add(fp32.run(fed), session.run(fed))
    return total.relative
