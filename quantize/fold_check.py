"""Checks on real samples that a tensor is what it was once its fold is taken back.

A fold makes a site's input x / s - p by the constants of what computes x. Here each one is applied
in FP32 and taken back in front of its readers, as (x' + p) s, and the ranges and squares of every
channel are compared with those of the graph as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.min_max import batch_stats, observe_ranges
from ..calibrate.observers.run import Outputs, open_instrumented
from ..calibrate.statistics import TensorStats
from ..graph.builder import constant
from ..graph.io import load_graph
from ..graph.linears import site_node
from ..graph.sites import Site
from ..samples.files import Arrays
from .fold import fold_into_norm, fold_into_producer, folds_shift
from .qdq.nodes import by_channel

Floats = NDArray[np.float32]
Runner = Callable[[Callable[[str, ir.Graph], None]], Iterator[tuple[str, Outputs]]]

# Largest difference of a channel's range or norm, relative to the largest of the tensor (80 dB).
# Rounding in float32 stays below 1e-5; a bias that is not divided gives 0.1 and more.
LIMIT = 1e-4
CHANGED_BYTES = 2**30  # of constants in a changed copy of a graph, which holds 2 GB
# The same where sessions leave weights in their file, so that one more costs little: changed
# constants exist three times while a session is made.
MAPPED_BYTES = 2**27
TRIED_SCALES = (2.0, 0.5, 4.0, 1.0, 0.25)
REFUSED = "its scale has a node of its own: folded, the tensor is off by {:.1e} of its range"


@dataclass(frozen=True, slots=True)
class AppliedFold:
    """All sites that read a tensor; it becomes x / `smoothing` - `offset`, both [C]."""

    sites: tuple[Site, ...]
    smoothing: Floats
    offset: Floats

    @property
    def key(self) -> str:
        return self.sites[0].name

    def apply(self, graph: ir.Graph) -> None:
        """Change the constants in front, while the weights are still floats."""
        first = self.sites[0]
        if first.fold is not None:
            fold_into_norm(graph, site_node(graph, first), self.smoothing, self.offset)
        else:
            fold_into_producer(graph, first, self.smoothing, self.offset)

    def take_back(self, graph: ir.Graph) -> ir.Value:
        """Give the readers (x' + p) s; p only where the fold takes a shift."""
        first = self.sites[0]
        nodes = [site_node(graph, site) for site in self.sites]
        value = nodes[0].inputs[0]
        assert value is not None
        steps = [("Mul", self.smoothing)]
        if folds_shift(first):
            steps.insert(0, ("Add", self.offset))
        earliest = next(node for node in graph if node in nodes)
        for op, by in steps:
            held = constant(graph, f"{first.name}/{op}:by", by_channel(first, by))
            node = ir.node(op, [value, held], name=f"{first.name}/{op}:back")
            made = node.outputs[0]
            made.name, made.type, made.shape = f"{first.name}/{op}:back", value.type, value.shape
            graph.insert_before(earliest, node)
            value = made
        for reader in nodes:
            reader.replace_input_with(0, value)
        return value


def failing_folds(
    folder: Path, run: Runner, folds: Sequence[AppliedFold], most: int = CHANGED_BYTES
) -> dict[str, float]:
    """Return the folds that change their tensor, by the name of the first site, and by how much.

    As many are tried together as change `most` bytes of a graph in `folder`; where that does not
    hold, each one alone.
    """
    if not folds:
        return {}
    before = seen(run, folds, applied=False)
    found = {}
    for part in parts_of(folder, folds, most):
        after = seen(run, part, applied=True)
        if all(difference(before[fold.key], after[fold.key]) <= LIMIT for fold in part):
            continue
        for fold in part:
            error = difference(before[fold.key], seen(run, [fold], applied=True)[fold.key])
            if not error <= LIMIT:
                found[fold.key] = error
    return found


def parts_of(folder: Path, folds: Sequence[AppliedFold], most: int) -> list[list[AppliedFold]]:
    """Split folds, in their order, so that the changed constants of each part are few enough."""
    names = {fold.sites[0].graph for fold in folds}
    held = {name: load_graph(folder / f"{name}.onnx").graph.initializers for name in names}
    parts: list[list[AppliedFold]] = []
    size = 0
    for fold in folds:
        first = fold.sites[0]
        divided = first.producer_fold.divide if first.producer_fold else ()
        # A weight that several folds share a part of counts each time.
        values = [held[first.graph][part.initializer].const_value for part in divided]
        alone = sum(value.nbytes for value in values if value is not None)
        if not parts or size + alone > most:
            parts.append([])
            size = 0
        parts[-1].append(fold)
        size += alone
    return parts


def seen(run: Runner, folds: Sequence[AppliedFold], *, applied: bool) -> dict[str, TensorStats]:
    """Observe what each fold's readers are fed, by its first site."""
    names: dict[str, str] = {}

    def instrument(graph_name: str, graph: ir.Graph) -> None:
        here = [fold for fold in folds if fold.sites[0].graph == graph_name]
        tensors: dict[str, int] = {}
        for fold in here if applied else ():
            fold.apply(graph)
        for fold in here:
            name = fold.sites[0].input
            if applied:
                name = str(fold.take_back(graph).name)
            names[fold.key] = name
            tensors[name] = fold.sites[0].channel_axis
        observe_ranges(graph, tensors)

    found: dict[str, TensorStats] = {}
    for graph_name, outputs in run(instrument):
        for fold in folds:
            if fold.sites[0].graph == graph_name:
                stats = batch_stats(outputs, names[fold.key])
                found[fold.key] = found[fold.key].merge(stats) if fold.key in found else stats
    return found


def difference(one: TensorStats, other: TensorStats) -> float:
    """Return the largest difference of a channel's ends or norm, relative to that of `one`."""
    worst = 0.0
    reach = float(np.maximum(np.abs(one.low), np.abs(one.high)).max())
    norms = np.sqrt(one.square), np.sqrt(other.square)
    for scale, pair in (
        (reach, (one.low, other.low)),
        (reach, (one.high, other.high)),
        (float(norms[0].max()), norms),
    ):
        # numpy's maximum keeps NaN, so that a comparison with it fails.
        error = float(np.abs(pair[0] - pair[1]).max())
        worst = float(np.maximum(worst, error / scale if scale > 0 else error))
    return worst


def on_samples(run: CalibrationRun, count: int) -> Runner:
    """Return what runs the graphs on their first `count` samples, one at a time."""
    few = replace(run, batch_size=1, part=slice(count))

    def observe(instrument: Callable[[str, ir.Graph], None]) -> Iterator[tuple[str, Outputs]]:
        found: list[tuple[str, Outputs]] = []
        few.observe(instrument, lambda graph, outputs: found.append((graph, dict(outputs))))
        yield from found

    return observe


def on_arrays(folder: Path, feeds: Mapping[str, Arrays]) -> Runner:
    """Return what runs the graphs of a folder, each on arrays of its own; weights stay in files."""

    def run(instrument: Callable[[str, ir.Graph], None]) -> Iterator[tuple[str, Outputs]]:
        for name, arrays in feeds.items():
            session = open_instrumented(folder / f"{name}.onnx", name, instrument, mapped=True)
            yield name, session.run(arrays)

    return run


def tried_folds(sites: Sequence[Site]) -> list[AppliedFold]:
    """Return every fold that a site map names, with scales that a wrong one cannot hide from.

    Powers of two, so that a right one is exact; shifts of about the size of a norm's output.
    """
    by_input: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        if site.fold is not None or site.producer_fold is not None:
            by_input.setdefault((site.graph, site.input), []).append(site)
    found = []
    for members in by_input.values():
        channels = members[0].weight_shape[1 if members[0].op == "Conv" else 0]
        scale = np.resize(np.array(TRIED_SCALES, np.float32), channels)
        shift = np.resize(np.array([0.5, -0.25, 0.125], np.float32), channels)
        found.append(AppliedFold(tuple(members), scale, shift))
    return found
