"""Passes over the samples of a generator: what the views of a graph's sites show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import CalibrationError
from ...graph.sites import Site, may_be_planned
from ...samples.files import sample_files
from ..convergence import Growth
from ..statistics import POSITION, Statistics, TensorStats
from .run import ALL, Outputs, Progress, batch_stats, run_instrumented
from .smoothed import (
    Grid,
    Power,
    View,
    error_unit,
    observe_gains,
    observe_grid_errors,
    observe_view_ranges,
)

Floats = NDArray[np.float64]
Instrument = Callable[[ir.Graph], None]


class FullGraph:
    """A graph that is calibrated and its samples, run once a pass; in most families of all
    positions."""

    def __init__(
        self,
        export: Path,
        samples: Path,
        graph: str,
        *,
        batch_size: int,
        progress: Progress,
        threads: int = 0,
        part: slice = ALL,
    ) -> None:
        self.path = export / f"{graph}.onnx"
        self._graph = graph
        self._samples = samples
        self._batch_size = batch_size
        self._progress = progress
        self._threads = threads
        self._part = part

    @property
    def size(self) -> int:
        """How many samples a pass sees."""
        return len(sample_files(self._samples, self._graph)[self._part])

    def halves(self) -> tuple[FullGraph, FullGraph]:
        """The same graph on the first and on the second half of the samples.

        Raises:
            CalibrationError: fewer than two samples.
        """
        middle = (self.size + 1) // 2
        if self.size < 2:
            raise CalibrationError(
                "a scaling is searched on one half of the samples and judged on the other, but "
                f"there is {self.size}",
                do='calibrate on more, or use smoothing = "gps"',
            )
        first, second = copy(self), copy(self)
        first._part, second._part = slice(middle), slice(middle, None)
        return first, second

    def ranges(self, views: Mapping[str, View], growth: Growth | None = None) -> Statistics:
        """By `KEY` statistics of the channels, by `KEY:position` of the positions.

        A `growth` of as many parts as there are batches keeps what they were on the way.
        """
        found = Growth(1) if growth is None else growth
        if not views:
            return found.total

        def consume(outputs: Outputs) -> None:
            for key, view in views.items():
                found.add(key, batch_stats(outputs, key))
                if view.token_axis is not None:
                    found.add(f"{key}{POSITION}", position_stats(outputs, key, view))

        self._run(lambda graph: observe_view_ranges(graph, views), consume)
        return found.total

    def gains(
        self, views: Mapping[str, View], grids: Mapping[str, Grid]
    ) -> dict[str, tuple[Floats, Floats]]:
        """By key sums of x^2 and of the grid's error^2 by channel, [C] both, in steps."""
        found: dict[str, tuple[Floats, Floats]] = {}
        if not grids:
            return found

        def consume(outputs: Outputs) -> None:
            for key in grids:
                signal, noise = (wide_sum(outputs[f"{key}:{n}"]) for n in ("signal", "noise"))
                before = found.get(key, (0.0, 0.0))
                found[key] = before[0] + signal, before[1] + noise

        self._run(lambda graph: observe_gains(graph, views, grids), consume)
        return found

    def grid_errors(
        self,
        views: Mapping[str, View],
        grids: Mapping[str, Sequence[Grid]],
        gains: Mapping[str, Floats],
        powers: Sequence[Power] = (2,),
    ) -> dict[str, dict[Power, Floats]]:
        """By key sums of (gain * error)^power, [grids, T], or [grids, 1] of one position."""
        found: dict[str, dict[Power, Floats]] = {key: {} for key in grids}
        if not grids:
            return found

        def consume(outputs: Outputs) -> None:
            for key, candidates in grids.items():
                for power in powers:
                    names = [f"{key}:{k}:e{power}" for k in range(len(candidates))]
                    rows = [position_sums(outputs, name, views[key]) for name in names]
                    total = np.stack(rows)
                    if views[key].token_axis is None:
                        total = total.sum(axis=1, keepdims=True)
                    units = [error_unit(views[key], grid) for grid in candidates]
                    total *= np.stack([unit**power for unit in units])
                    found[key][power] = found[key].get(power, 0.0) + total

        self._run(lambda graph: observe_grid_errors(graph, views, grids, gains, powers), consume)
        return found

    def _run(self, instrument: Instrument, consume: Callable[[Outputs], None]) -> None:
        run_instrumented(
            self.path.parent,
            self._samples,
            (self._graph,),
            batch_size=self._batch_size,
            instrument=lambda _, graph: instrument(graph),
            consume=lambda _, outputs: consume(outputs),
            progress=self._progress,
            threads=self._threads,
            part=self._part,
        )


def collect_full_ranges(
    export: Path,
    samples: Path,
    sites: Sequence[Site],
    *,
    batch_size: int,
    progress: Progress,
    threads: int = 0,
    growth: Growth | None = None,
) -> Statistics:
    """Ranges and squares of the inputs of a graph's sites, by site name.

    Of the channels under `SITE`; of the positions, where there are any, under `SITE:position`.
    """
    groups = by_input([site for site in sites if may_be_planned(site)])
    graph = FullGraph(
        export,
        samples,
        sites[0].graph,
        batch_size=batch_size,
        progress=progress,
        threads=threads,
    )
    found = graph.ranges({key: plain_view(group[0]) for key, group in groups.items()}, growth)
    return {
        f"{site.name}{kind}": found[f"{key}{kind}"]
        for key, group in groups.items()
        for site in group
        for kind in ("", POSITION)
        if f"{key}{kind}" in found
    }


def quantizable(sites: Sequence[Site]) -> list[Site]:
    """Those with a weight that the method does not leave out."""
    return [site for site in sites if site.weight is not None and site.excluded is None]


def by_input(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Sites that read the same tensor, under the name of the first."""
    readers: dict[str, list[Site]] = {}
    for site in sites:
        readers.setdefault(site.input, []).append(site)
    return {group[0].name: group for group in readers.values()}


def plain_view(site: Site) -> View:
    """The site's input as it is."""
    if not site.knows_positions:
        return View(site.input, site.channel_axis)
    view = View(site.input, site.channel_axis, site.token_axis)
    if site.positions is None:
        return view
    return replace(view, places=site.position_input, positions=site.positions)


def wide_sum(rows: NDArray[np.generic]) -> Floats:
    """Over the samples of a batch, in float64."""
    total: Floats = rows.astype(np.float64).sum(axis=0)
    return total


def position_sums(outputs: Outputs, name: str, view: View) -> Floats:
    """Over the samples of a batch, in float64, by position where the view tells them apart."""
    if view.token_axis is None or view.places is None:
        return wide_sum(outputs[name])
    assert view.positions is not None
    rows = outputs[name].astype(np.float64)
    places = np.broadcast_to(outputs[view.places].astype(np.int64), rows.shape)
    total: Floats = np.bincount(places.ravel(), rows.ravel(), view.positions).astype(np.float64)
    return total


def position_stats(outputs: Outputs, key: str, view: View) -> TensorStats:
    """Of a batch, by position; one that no row had is empty: no count, its range inside out."""
    name = f"{key}/position"
    if view.places is None:
        return batch_stats(outputs, name)
    assert view.positions is not None
    rows, channels = outputs[f"{name}:min"].shape, int(outputs[f"{name}:shape"][view.channel_axis])
    places = np.broadcast_to(outputs[view.places].astype(np.int64), rows)
    low, high = np.full(view.positions, np.inf), np.full(view.positions, -np.inf)
    np.minimum.at(low, places, outputs[f"{name}:min"].astype(np.float64))
    np.maximum.at(high, places, outputs[f"{name}:max"].astype(np.float64))
    counts = np.bincount(places.ravel(), minlength=view.positions) * channels
    return TensorStats(low, high, position_sums(outputs, f"{name}:square", view), counts)
