"""Passes over the samples of a generator: what the views of its sites show in the full graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..sites import Site
from .convergence import Growth
from .passes import Outputs, Progress, batch_stats, run_instrumented
from .statistics import POSITION, Statistics
from .views import Grid, View, observe_gains, observe_grid_errors, observe_view_ranges

Floats = NDArray[np.float64]
Instrument = Callable[[ir.Graph], None]


class FullGraph:
    """The graph of all positions and the samples it is calibrated on, run once a pass."""

    def __init__(
        self,
        export: Path,
        samples: Path,
        graph: str,
        *,
        batch_size: int,
        progress: Progress,
        threads: int = 0,
        optimized: bool = True,
    ) -> None:
        self.path = export / f"{graph}.onnx"
        self._graph = graph
        self._samples = samples
        self._batch_size = batch_size
        self._progress = progress
        self._threads = threads
        self._optimized = optimized

    def ranges(self, views: Mapping[str, View], growth: Growth | None = None) -> Statistics:
        """By `KEY` statistics of the channels, by `KEY:position` of the positions.

        A `growth` of as many parts as there are batches keeps what they were on the way.
        """
        found = Growth(1) if growth is None else growth

        def consume(outputs: Outputs) -> None:
            for key, view in views.items():
                found.add(key, batch_stats(outputs, key))
                if view.token_axis is not None:
                    found.add(f"{key}{POSITION}", batch_stats(outputs, f"{key}/position"))

        self._run(lambda graph: observe_view_ranges(graph, views), consume)
        return found.total

    def gains(
        self, views: Mapping[str, View], grids: Mapping[str, Grid]
    ) -> dict[str, tuple[Floats, Floats]]:
        """By key sums of x^2 and of the grid's error^2 by channel, [C] both, in steps."""
        found: dict[str, tuple[Floats, Floats]] = {}

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
    ) -> dict[str, tuple[Floats, Floats]]:
        """By key sums of (gain * error)^2 and ^4, [grids, T], or [grids, 1] of one position."""
        found: dict[str, tuple[Floats, Floats]] = {}

        def consume(outputs: Outputs) -> None:
            for key, candidates in grids.items():
                sums = []
                for power in (2, 4):
                    rows = [
                        wide_sum(outputs[f"{key}:{k}:e{power}"]) for k in range(len(candidates))
                    ]
                    total = np.stack(rows)
                    if views[key].token_axis is None:
                        total = total.sum(axis=1, keepdims=True)
                    # In the units of the view: steps are the candidates' own.
                    sums.append(total * np.stack([grid.step**power for grid in candidates]))
                before = found.get(key, (0.0, 0.0))
                found[key] = before[0] + sums[0], before[1] + sums[1]

        self._run(lambda graph: observe_grid_errors(graph, views, grids, gains), consume)
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
            optimized=self._optimized,
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
    """Ranges and squares of the inputs of a full graph's sites, by site name.

    Of the channels under `SITE`; of the positions, where there are any, under `SITE:position`.
    """
    groups = by_input(quantizable(sites))
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
    return View(site.input, site.channel_axis, site.token_axis)


def wide_sum(rows: NDArray[np.generic]) -> Floats:
    """Over the samples of a batch, in float64."""
    total: Floats = rows.astype(np.float64).sum(axis=0)
    return total
