"""Measure what a graph's outputs lose when single weights or inputs are rounded, run by run.

One session serves all runs of a graph. Its weights are initializers that a run may feed anew, and
each input that a plan may round has a toggle, so that nothing is rewritten between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.observers.reduce import values_by_name
from ...calibrate.observers.smoothed import SmoothedInput, add_smoothed, along, rounding_error
from ...errors import CalibrationError
from ...graph.builder import add_node, constant, constant_array
from ...graph.io import graph_bytes, load_graph
from ...graph.linears import output_first, site_node
from ...graph.sites import Site
from ...numerics.qparams import QParams
from ...runtime.sessions.open import open_session, reference_session
from ...samples.files import Array, Arrays, feeds_of

Floats = NDArray[np.float32]
LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class RoundedInput:
    """Hold the QParams that a site's smoothed input can be rounded by."""

    view: SmoothedInput
    qparams: QParams


class PerturbedGraph:
    """Run a graph with replaced weights of `sites` and rounded inputs of some of them.

    `inputs` gives the grids by site; sites that read one tensor are rounded together, by the grid
    of the first. `targets` are the outputs whose error counts: logits, where there are any; of a
    graph that gives codes what its last product gives, before they are rounded; else all floats.
    """

    def __init__(
        self,
        path: Path,
        sites: Sequence[Site],
        inputs: Mapping[str, RoundedInput] | None = None,
        *,
        last: Site | None = None,
    ) -> None:
        model = load_graph(path)
        self._sites = {site.name: site for site in sites}
        self._nodes = {site.name: site_node(model.graph, site) for site in sites}
        self._weights = {str(s.weight): model.graph.initializers[str(s.weight)] for s in sites}
        self.targets = target_outputs(model.graph, last)
        self._toggles = add_toggles(model.graph, sites, inputs or {})
        model.graph.inputs.extend(self._weights.values())
        self.session = open_session(path, optimized=True, graph=graph_bytes(model))

    def weight(self, name: str) -> Floats:
        """Return the weight of a site, output channel first."""
        held = constant_array(self._weights[str(self._sites[name].weight)])
        return output_first(self._nodes[name], held.astype(np.float32, copy=False))

    def feeds(self, weights: Mapping[str, Floats], rounded: Sequence[str] = ()) -> dict[str, Array]:
        """Return what a run is fed beside its samples, for weights and rounded inputs."""
        fed: dict[str, Array] = {}
        for name, weight in weights.items():
            held = np.ascontiguousarray(output_first(self._nodes[name], weight))
            fed[str(self._sites[name].weight)] = held
        return fed | {self._toggles[name]: np.float32(1).reshape(1) for name in rounded}

    def run(self, arrays: Arrays, changes: Arrays, carried: Arrays) -> dict[str, Array]:
        """Return all outputs of a batch, given the outputs of earlier graphs."""
        return self.session.run(
            feeds_of(self.session.path.stem, self.session.inputs, arrays, carried) | dict(changes)
        )


def target_outputs(graph: ir.Graph, last: Site | None) -> tuple[str, ...]:
    """Return what the error of a graph is measured at, made an output where it is none yet."""
    names = [str(value.name) for value in graph.outputs]
    if LOGITS in names:
        return (LOGITS,)
    floats = [str(v.name) for v in graph.outputs if v.dtype == ir.DataType.FLOAT]
    if last is None or len(floats) == len(names):
        return tuple(floats)
    if last.output not in names:
        value = values_by_name(graph)[last.output]
        value.dtype = ir.DataType.FLOAT
        graph.outputs.append(value)
    return (last.output,)


def add_toggles(
    graph: ir.Graph, sites: Sequence[Site], inputs: Mapping[str, RoundedInput]
) -> dict[str, str]:
    """Replace each tensor that sites read by x + toggle * error; returns the toggle by site.

    A toggle is an initializer of 0 that may be fed, so that by default nothing is rounded.
    """
    values = values_by_name(graph)
    toggles: dict[str, str] = {}
    by_tensor: dict[str, str] = {}
    for site in sites:
        if site.name not in inputs:
            continue
        if site.input not in by_tensor:
            rounded = add_toggle(graph, values[site.input], inputs[site.name], site.name)
            readers = [s.node for s in sites if s.input == site.input and s.name in inputs]
            for node in graph:
                if node.name in readers:
                    node.replace_input_with(0, rounded)
            by_tensor[site.input] = f"{site.name}:toggle"
        toggles[site.name] = by_tensor[site.input]
    graph.sort()
    return toggles


def add_toggle(graph: ir.Graph, value: ir.Value, rounded: RoundedInput, key: str) -> ir.Value:
    view, qparams = rounded.view, rounded.qparams
    assert value.shape is not None
    rank = len(value.shape)
    seen = add_smoothed(graph, value, view, f"{key}:view")
    _, error = rounding_error(graph, seen, view, qparams, key)
    toggle = constant(graph, f"{key}:toggle", np.zeros(1, np.float32))
    graph.inputs.append(toggle)
    step = add_node(graph, "Mul", [error, toggle], f"{key}:toggled")
    # Back from steps of the grid to the tensor's own units; a shift cancels in an error.
    backward = [(qparams.scale, view.token_axis or 0)]
    backward += [(view.token_scale, view.token_axis or 0)] if view.token_scale is not None else []
    backward += [(view.scale, view.channel_axis)] if view.scale is not None else []
    for k, (factor, axis) in enumerate(backward):
        values = factor.astype(np.float32)
        shaped = along(values, axis, rank) if values.size > 1 else values.reshape(())
        held = constant(graph, f"{key}:backward.{k}", shaped)
        step = add_node(graph, "Mul", [step, held], f"{key}:unscaled.{k}")
    return add_node(graph, "Add", [value, step], f"{key}:rounded")


def squared_distance(wanted: Arrays, found: Arrays) -> float:
    """Return mean squared difference of outputs, each relative to its own variance; summed."""
    total = 0.0
    for name, reference in wanted.items():
        wide = reference.astype(np.float64)
        spread = float(np.var(wide)) or 1.0
        total += float(np.mean(np.square(found[name].astype(np.float64) - wide))) / spread
    return total


def divergence(wanted: Arrays, found: Arrays) -> float:
    """Return KL(wanted || found) of the logits' softmax in nats, mean over rows and positions."""
    p, q = (log_softmax(outputs[LOGITS]) for outputs in (wanted, found))
    with np.errstate(invalid="ignore"):
        added = np.exp(p) * (p - q)
    # A masked token has no part in it, in either.
    return float(np.where((p == -np.inf) & ~np.isnan(q), 0.0, added).sum(axis=-1).mean())


def log_softmax(logits: Array) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def distance(wanted: Arrays, found: Arrays) -> float:
    """Return the loss at a graph's targets: the divergence of logits, else a squared distance.

    Raises:
        CalibrationError: it is not finite, so that no plan can be chosen by it.
    """
    lost = (divergence if LOGITS in wanted else squared_distance)(wanted, found)
    if not 0 <= abs(lost) < np.inf:
        raise CalibrationError(
            f"the loss at {', '.join(wanted)} is {lost}, which no plan can be chosen by",
            do="look for NaN or overflow there; leave the suspect sites out",
        )
    return lost


class PerturbedChain:
    """Graphs that feed each other, and what they give for some samples while all is FP32.

    `batches` are the arrays of a run each. All of them and the targets of every graph stay in
    memory, so they are few.
    """

    def __init__(self, probes: Mapping[str, PerturbedGraph], batches: Sequence[Arrays]) -> None:
        self.probes = dict(probes)
        self._batches = list(batches)
        self._carried: dict[str, list[dict[str, Array]]] = {}
        self._wanted: dict[str, list[dict[str, Array]]] = {}
        carried: list[dict[str, Array]] = [{} for _ in self._batches]
        for graph, probe in self.probes.items():
            self._carried[graph] = [dict(held) for held in carried]
            self._wanted[graph] = []
            for arrays, held in zip(self._batches, carried, strict=True):
                outputs = probe.run(arrays, {}, held)
                self._wanted[graph].append({name: outputs[name] for name in probe.targets})
                held |= {k: v for k, v in outputs.items() if self._feeds_later(graph, k)}

    def own_loss(self, graph: str, changes: Arrays) -> float:
        """Return the loss of a graph with `changes` at its own targets, mean over batches."""
        probe = self.probes[graph]
        losses = []
        runs = zip(self._batches, self._carried[graph], self._wanted[graph], strict=True)
        for arrays, carried, wanted in runs:
            losses.append(distance(wanted, probe.run(arrays, changes, carried)))
        return float(np.mean(losses))

    def end_loss(self, changes: Mapping[str, Arrays]) -> float:
        """Return the loss of all graphs with their changes at the targets of the last one."""

        def run(graph: str, arrays: Arrays, carried: Arrays) -> dict[str, Array]:
            return self.probes[graph].run(arrays, changes.get(graph, {}), carried)

        return self._end_loss(run)

    def end_loss_of(self, folder: Path) -> float:
        """Return the loss of the quantized graphs in a folder."""
        sessions = {graph: reference_session(folder / f"{graph}.onnx") for graph in self.probes}

        def run(graph: str, arrays: Arrays, carried: Arrays) -> dict[str, Array]:
            feeds = feeds_of(graph, sessions[graph].inputs, arrays, carried)
            return sessions[graph].run(feeds)

        return self._end_loss(run)

    def _end_loss(self, run: Callable[[str, Arrays, Arrays], dict[str, Array]]) -> float:
        last = list(self.probes)[-1]
        losses = []
        for arrays, wanted in zip(self._batches, self._wanted[last], strict=True):
            carried: dict[str, Array] = {}
            for graph in self.probes:
                outputs = run(graph, arrays, carried)
                carried |= outputs
            losses.append(distance(wanted, outputs))
        return float(np.mean(losses))

    def _feeds_later(self, graph: str, name: str) -> bool:
        later = list(self.probes)[list(self.probes).index(graph) + 1 :]
        return any(name in self.probes[g].session.inputs for g in later)
