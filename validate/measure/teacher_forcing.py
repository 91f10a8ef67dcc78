"""Compare the quantized graphs of a generator with FP32's under teacher forcing.

Every candidate is fed what FP32's own graphs were fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ..metrics.logits import LogitsAccumulator
from ..metrics.outputs import Arrays, OutputAccumulator, require_like
from ..metrics.sites import SiteAccumulator
from .generator_accuracy import GeneratorAccuracy

LOGITS = "logits"


class Session(Protocol):
    """Run a graph: feeds by input name -> the named outputs."""

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Arrays: ...


@dataclass(frozen=True, slots=True)
class TeacherForcedRun:
    """Hold what one graph is fed, and for logits the true tokens, int [R, L].

    `conditional` [R] says which rows have a class; `name` is the sample's name in errors. `carried`
    makes the feeds that come from the outputs of the last run without `carried`; FP32 and each
    candidate use their own outputs there.
    """

    name: str
    graph: str
    feeds: Arrays
    tokens: NDArray[np.integer] | None = None
    conditional: NDArray[np.bool_] | None = None
    carried: Callable[[Arrays], Arrays] | None = None


@dataclass(frozen=True, slots=True)
class ComparedGraph:
    """Hold one graph of FP32 and of the candidates, and what is compared of it.

    `outputs` are the graph's own. `sites` names tensors inside it by site, in graph order. FP32's
    graph, and those of the candidates that `restore` names, have them as outputs too. `restore`
    undoes the folds of some sites, so that their outputs mean what FP32's mean.
    """

    reference: Session
    candidates: Mapping[str, Session]
    outputs: tuple[str, ...]
    sites: Mapping[str, str]
    restore: Mapping[str, Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]]]


class _Side:
    """Run FP32 or a candidate, and keep the outputs that later runs are fed."""

    def __init__(self) -> None:
        self._given: Arrays = {}

    def run(self, session: Session, run: TeacherForcedRun, outputs: Sequence[str]) -> Arrays:
        if run.carried is not None:
            return session.run({**run.feeds, **run.carried(self._given)}, outputs)
        self._given = session.run(run.feeds, outputs)
        return self._given


class _Accumulator:
    """Add up the accuracy of one candidate over all runs."""

    def __init__(self) -> None:
        self.logits: LogitsAccumulator | None = None
        self.outputs: dict[str, OutputAccumulator] = {}
        self.sites = SiteAccumulator()

    def add(
        self, run: TeacherForcedRun, graph: ComparedGraph, name: str, wanted: Arrays, actual: Arrays
    ) -> None:
        """Add the outputs `actual` of the candidate `name` in one run."""
        for output in graph.outputs:
            if output == LOGITS and run.tokens is not None and run.conditional is not None:
                self.logits = self.logits or LogitsAccumulator()
                self.logits.add(
                    wanted[output], actual[output], run.tokens, run.conditional, run.name
                )
            else:
                accumulator = self.outputs.setdefault(f"{run.graph}/{output}", OutputAccumulator())
                accumulator.add(wanted[output], actual[output], run.name)
        for site, tensor in graph.sites.items() if name in graph.restore else ():
            restore = graph.restore[name].get(site)
            value = restore(actual[tensor]) if restore else actual[tensor]
            self.sites.add(site, run.name, wanted[tensor], value)

    def result(self) -> GeneratorAccuracy:
        return GeneratorAccuracy(
            logits=self.logits.result() if self.logits else None,
            outputs=tuple(accumulator.result(name) for name, accumulator in self.outputs.items()),
            sites=self.sites.decibels(),
            worst_sites=self.sites.worst(),
        )


def measure_teacher_forced(
    runs: Iterable[TeacherForcedRun],
    graphs: Mapping[str, ComparedGraph],
    progress: Callable[[int], None],
) -> dict[str, GeneratorAccuracy]:
    """Return the accuracy of logits, other outputs and sites of each candidate, without images.

    One run is in memory at a time. `progress` is called with the number of runs done.

    Raises:
        AccuracyError: values that are not finite or of another shape than FP32's (candidate, graph
            and sample are named), or no runs at all.
    """
    accumulators = {name: _Accumulator() for graph in graphs.values() for name in graph.candidates}
    sides = {name: _Side() for name in (None, *accumulators)}
    done = 0
    for done, run in enumerate(runs, start=1):
        graph = graphs[run.graph]
        tensors = list(dict.fromkeys(graph.sites.values()))
        wanted = sides[None].run(graph.reference, run, [*graph.outputs, *tensors])
        for name, session in graph.candidates.items():
            asked = tensors if name in graph.restore else []
            found = sides[name].run(session, run, [*graph.outputs, *asked])
            for output in graph.outputs:
                require_like(name, run.name, f"{run.graph}/{output}", wanted[output], found[output])
            accumulators[name].add(run, graph, name, wanted, found)
        progress(done)
    if not done:
        raise AccuracyError("there are no samples to validate with", do="give --samples 1 or more")
    return {name: accumulator.result() for name, accumulator in accumulators.items()}
