"""Run observers: graphs of a folder, and the saved samples that they are run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..graph.sites import Site, SiteMap, by_input, may_be_planned
from ..numerics.qparams import QParams
from ..samples.files import sample_files
from .convergence import RangeGrowth
from .observers.absmax import keep_absmax, observe_absmax
from .observers.clip_error import (
    ErrorPairs,
    Power,
    added_pairs,
    batch_channel_clip_errors,
    batch_clip_errors,
    observe_channel_clip_errors,
    observe_clip_errors,
)
from .observers.gps_terms import observe_gps_terms
from .observers.hessian import HessianAccumulator, HessianObserver, HessianSums, observe_hessian
from .observers.min_max import (
    batch_stats,
    observe_ranges,
    observe_smoothed_ranges,
    observe_token_ranges,
    position_stats,
)
from .observers.run import Outputs, Progress, run_instrumented
from .observers.smoothed import Scaling, SmoothedInput, plain_input, wide_sum
from .statistics import OUTPUT, POSITION, Statistics

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """Run `graphs` of the folder `export` in turn on `part` of the saved samples.

    As many samples as `batch_size` are in flight, on `threads` threads (0: all). Each method runs
    the samples once. Methods that take inputs by key alone are of a run of one graph (see `on`), or
    of the one that is `observed`, which others feed (see `inside`).
    """

    export: Path
    samples: Path
    graphs: tuple[str, ...]
    batch_size: int
    progress: Progress
    threads: int = 0
    part: slice = field(default_factory=lambda: slice(None))
    observed: tuple[str, ...] | None = None

    def on(self, *graphs: str) -> CalibrationRun:
        """Return the same run of other graphs."""
        return replace(self, graphs=graphs)

    def inside(self, *graphs: str) -> CalibrationRun:
        """Return the same run up to the last of `graphs`, of which alone anything is observed."""
        last = max(self.graphs.index(graph) for graph in graphs)
        return replace(self, graphs=self.graphs[: last + 1], observed=graphs)

    def of(self, part: slice) -> CalibrationRun:
        """Return the same run on a part of the samples."""
        return replace(self, part=part)

    @property
    def size(self) -> int:
        """Return the number of samples that the first graph is run on."""
        return len(sample_files(self.samples, self.graphs[0])[self.part])

    def first_half(self) -> CalibrationRun:
        """Return the same run on the first half of all samples, the larger one."""
        return self.of(slice(self._middle()))

    def second_half(self) -> CalibrationRun:
        """Return the same run on the second half of all samples."""
        return self.of(slice(self._middle(), None))

    def _middle(self) -> int:
        """Return where the second half begins.

        Raises:
            CalibrationError: fewer than two samples.
        """
        if self.size < 2:
            raise CalibrationError(
                "a scaling is searched on one half of the samples and judged on the other, but "
                f"there is {self.size}",
                do='calibrate on more, or use smoothing = "gps"',
            )
        return (self.size + 1) // 2

    def observe(
        self,
        instrument: Callable[[str, ir.Graph], None],
        consume: Callable[[str, Outputs], None],
    ) -> tuple[str, ...]:
        """Run the graphs with what `instrument` adds; `consume(graph, outputs)` gets each batch.

        Returns the graphs inside which NaN or infinity was left out (see `run_instrumented`).

        Raises:
            CalibrationError: a non-finite value in what a graph computes for a sample (named), or
                an input that nothing feeds.
        """
        return run_instrumented(
            self.export,
            self.samples,
            self.graphs,
            batch_size=self.batch_size,
            instrument=instrument,
            consume=consume,
            progress=self.progress,
            threads=self.threads,
            part=self.part,
            observed=self.observed,
        )

    def channel_ranges(
        self, site_map: SiteMap, growth: RangeGrowth | None = None, masked: list[str] | None = None
    ) -> Statistics:
        """Return min, max and sum of squares of each channel, by site name.

        Of every site's input under `SITE`, and of its output under `SITE:output` (the ONNX Runtime
        engine needs a grid for what a convolution returns); of positions, where an input has them,
        under `SITE:position`. A `growth` of as many parts as there are batches keeps what they were
        on the way; graphs that compute NaN or infinity which reaches no output are added to
        `masked`.
        """
        ranges = RangeGrowth(1) if growth is None else growth
        sites = {
            graph: [site for site in site_map.of_graph(graph) if may_be_planned(site)]
            for graph in self.graphs
        }

        tokens = {
            graph: {k: group for k, group in by_input(planned).items() if group[0].knows_positions}
            for graph, planned in sites.items()
        }

        def instrument(name: str, graph: ir.Graph) -> None:
            axes = {t: s.channel_axis for s in sites[name] for t in (s.input, s.output)}
            observe_ranges(graph, axes)
            observe_token_ranges(graph, {k: plain_input(m[0]) for k, m in tokens[name].items()})

        def consume(name: str, outputs: Outputs) -> None:
            for site in sites[name]:
                ranges.add(site.name, batch_stats(outputs, site.input))
                ranges.add(f"{site.name}{OUTPUT}", batch_stats(outputs, site.output))
            for key, members in tokens[name].items():
                stats = position_stats(outputs, key, plain_input(members[0]))
                for site in members:
                    ranges.add(f"{site.name}{POSITION}", stats)

        found = self.observe(instrument, consume)
        if masked is not None:
            masked += found
        return ranges.total

    def input_ranges(self, sites: Sequence[Site], growth: RangeGrowth | None = None) -> Statistics:
        """Return ranges and squares of the inputs of one graph's sites, by site name.

        Of the channels under `SITE`; of the positions, where there are any, under `SITE:position`.
        """
        groups = by_input([site for site in sites if may_be_planned(site)])
        inputs = {key: plain_input(group[0]) for key, group in groups.items()}
        ranges = self.ranges(inputs, growth)
        return {
            f"{site.name}{kind}": ranges[f"{key}{kind}"]
            for key, group in groups.items()
            for site in group
            for kind in ("", POSITION)
            if f"{key}{kind}" in ranges
        }

    def ranges(
        self, inputs: Mapping[str, SmoothedInput], growth: RangeGrowth | None = None
    ) -> Statistics:
        """Return by `KEY` statistics of the channels, by `KEY:position` of the positions.

        A `growth` of as many parts as there are batches keeps what they were on the way.
        """
        total = RangeGrowth(1) if growth is None else growth

        def consume(_: str, outputs: Outputs) -> None:
            for key, smoothed_input in inputs.items():
                total.add(key, batch_stats(outputs, key))
                if smoothed_input.token_axis is not None:
                    total.add(f"{key}{POSITION}", position_stats(outputs, key, smoothed_input))

        if inputs:
            self.observe(lambda _, graph: observe_smoothed_ranges(graph, inputs), consume)
        return total.total

    def gps_terms(
        self, inputs: Mapping[str, SmoothedInput], qparams: Mapping[str, QParams]
    ) -> dict[str, tuple[Floats, Floats]]:
        """Return by key sums of x^2 and of the rounding error^2 by channel, in units of scales.

        Both are [C].
        """
        terms: dict[str, tuple[Floats, Floats]] = {}

        def consume(_: str, outputs: Outputs) -> None:
            for key in qparams:
                signal, noise = (wide_sum(outputs[f"{key}:{n}"]) for n in ("signal", "noise"))
                before = terms.get(key, (0.0, 0.0))
                terms[key] = before[0] + signal, before[1] + noise

        if qparams:
            self.observe(lambda _, graph: observe_gps_terms(graph, inputs, qparams), consume)
        return terms

    def clip_errors(
        self,
        inputs: Mapping[str, SmoothedInput],
        candidates: Mapping[str, Sequence[QParams]],
        gains: Mapping[str, Floats],
        powers: Sequence[Power] = (2,),
    ) -> dict[str, dict[Power, Floats]]:
        """Return by key sums of (gain * error)^power, [candidates, T] or [candidates, 1]."""
        errors: dict[str, dict[Power, Floats]] = {key: {} for key in candidates}

        def consume(_: str, outputs: Outputs) -> None:
            for key, tried in candidates.items():
                for power in powers:
                    found = batch_clip_errors(outputs, key, inputs[key], tried, power)
                    errors[key][power] = errors[key].get(power, 0.0) + found

        if candidates:
            self.observe(
                lambda _, graph: observe_clip_errors(graph, inputs, candidates, gains, powers),
                consume,
            )
        return errors

    def channel_clip_errors(
        self,
        candidates: Mapping[str, Mapping[str, Sequence[QParams]]],
        scalings: Mapping[str, Mapping[str, Scaling]],
        channel_axes: Mapping[str, Mapping[str, int]],
    ) -> dict[str, ErrorPairs]:
        """Return per tensor and candidate channel sums of error^2 and error^4, [C].

        `candidates`, scalings and axes of channels are by graph, then by tensor; so is the
        result's key, `graph/tensor`.
        """
        sums: dict[str, ErrorPairs] = {}

        def instrument(name: str, graph: ir.Graph) -> None:
            if name in candidates:
                observe_channel_clip_errors(
                    graph, candidates[name], scalings[name], channel_axes[name]
                )

        def consume(name: str, outputs: Outputs) -> None:
            for tensor, tried in candidates.get(name, {}).items():
                found = batch_channel_clip_errors(outputs, tensor, tried)
                key = f"{name}/{tensor}"
                before = sums.get(key)
                sums[key] = found if before is None else added_pairs(before, found)

        self.observe(instrument, consume)
        return sums

    def hessian(self, observers: Mapping[str, HessianObserver]) -> dict[str, HessianSums]:
        """Return the sums of each observer; graphs run up to the last that one lies in."""
        sums = HessianAccumulator(observers)
        inside = sorted({observer.graph for observer in observers.values()})

        def instrument(name: str, graph: ir.Graph) -> None:
            observe_hessian(graph, {k: p for k, p in observers.items() if p.graph == name})

        self.inside(*inside).observe(instrument, sums.add)
        return sums.moments()

    def absmax(self) -> dict[str, dict[str, float]]:
        """Return max |x| of the float tensors that the graphs compute, by graph and tensor.

        Constants, masks and what a mask was added to are left out.
        """
        largest: dict[str, dict[str, float]] = {graph: {} for graph in self.graphs}
        self.observe(
            lambda _, graph: observe_absmax(graph),
            lambda name, outputs: keep_absmax(largest[name], outputs),
        )
        return largest
