"""Rounds the weights of candidate scalings as the plan rounds those of the chosen one.

GPTQ and corrected biases need second moments of what a candidate feeds its products. Those of the
input as it is are summed once over the samples that candidates are fitted to; each candidate's, of
x / s - p, follow from them. The rounding of inputs adds uniform noise to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.hessian import HessianSums
from ...calibrate.observers.smoothed import SmoothedInput
from ...graph.linears import site_node, site_weight
from ...numerics.gptq import STEPS
from ...numerics.scheme import ActivationFormat
from ...recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..groups import InputGroup, site_statistics
from ..rounding import RoundingTask, is_plain, moments_of_tasks, rounded_weight
from ..separate_graphs import input_scaling, round_to_nearest, scaled_weight
from .predicted import Way
from .trials import Fold, TrialWeights, fit_ways

Floats = NDArray[np.float64]


def round_trials(
    run: CalibrationRun,
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    ways: Mapping[str, Sequence[Way]],
    fold: Fold,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> TrialWeights:
    """Round the weights of every candidate with the samples of a fold that it is fitted to.

    The result is by site and candidate. `groups` are of one graph, `ways` those of each group.
    Sites that the plan rounds to nearest are left out, and so are those whose rows cannot be made.
    """
    group_of = {site.name: group for group in groups for site in group.sites}
    tasks = [
        task
        for group in groups
        for task in trial_tasks(graph, group, fold, options)
        if is_plain(task.node, task.site)
    ]
    key_of = {task.site.name: group_of[task.site.name].key for task in tasks}
    centered = {g.key for g in groups if any(way.centered for way in ways[g.key])}
    moved = [task for task in tasks if key_of[task.site.name] in centered]
    origins = {
        key_of[task.site.name]: channel_means(task, moments)
        for task, moments in summed(
            run.of(one_of(fold.part)), moved, max_memory=max_memory, squares=False
        )
    }
    tasks = [
        replace(task, view=replace(task.view, shift=origins.get(key_of[task.site.name])))
        for task in tasks
    ]
    found: TrialWeights = {}
    for task, moments in summed(run.of(fold.part), tasks, max_memory=max_memory):
        site, group = task.site, group_of[task.site.name]
        tried = ways[group.key]
        trials = fit_ways(graph, group, tried, fold, options)
        for way, trial in zip(tried, trials, strict=True):
            scale, center = input_scaling(task.entry, trial.scaling)
            found[site.name, way] = rounded_weight(
                scaled_weight(graph, site, task.entry, trial.scaling),
                partial(
                    round_to_nearest,
                    site=site,
                    entry=task.entry,
                    statistics=fold.fitted,
                    options=options,
                    scaling=trial.scaling,
                ),
                scaled_moments(moments, task.view.shift, scale, center, trial.activation),
                compensates=task.compensates,
                correct=options.bias_correction,
                steps=STEPS[:1],
            )
    return found


def trial_tasks(
    graph: ir.Graph, group: InputGroup, fold: Fold, options: QuantizeOptions
) -> Iterator[RoundingTask]:
    """Yield the weights of a group that data rounds, their input as it is before any scaling."""
    for site in group.sites:
        entry = group.entries[site.name]
        if RoundingTask.needed(entry, correct=options.bias_correction):
            yield RoundingTask(
                site,
                entry,
                site_node(graph, site),
                SmoothedInput(site.input, site.channel_axis),
                None,
                int(site_statistics(fold.fitted, site.name).count),
                partial(site_weight, graph, site),
                partial(
                    round_to_nearest,
                    site=site,
                    entry=entry,
                    statistics=fold.fitted,
                    options=options,
                    scaling=None,
                ),
            )


def summed(
    run: CalibrationRun,
    tasks: Sequence[RoundingTask],
    *,
    max_memory: int,
    squares: bool = True,
) -> Iterator[tuple[RoundingTask, HessianSums]]:
    """Yield tasks with the moments of their rows over the samples of a run."""
    if tasks:
        yield from moments_of_tasks(run, tasks, means=True, max_memory=max_memory, squares=squares)


def one_of(part: slice) -> slice:
    """Return the first sample of a part, whose means show where about an input lies.

    Around it, squares are least, so that what another centre adds takes no digits away. The middle
    of a range would not do, which a heavy tail moves far from the mean.
    """
    return slice(part.start, part.start + 1)


def channel_means(task: RoundingTask, moments: HessianSums) -> Floats:
    """Return the mean of each input channel over all taps of a kernel, [C]."""
    assert moments.plain is not None
    channels = task.weight().shape[1]
    means: Floats = moments.plain.reshape(channels, -1).mean(axis=1) / max(1, moments.count)
    return means


def scaled_moments(
    moments: HessianSums,
    origin: Floats | None,
    scale: NDArray[np.float32] | None,
    center: NDArray[np.float32] | None,
    activation: ActivationFormat,
) -> HessianSums:
    """Turn moments of x - `origin` into those of x / `scale` - `center` on a grid, all [C].

    A grid's errors are uniform noise of mean 0 here. One array of [K, K] is made.
    """
    assert moments.plain is not None
    columns = len(moments.plain)

    def by_column(channels: NDArray[np.floating] | None, default: float) -> Floats:
        wide = np.full(1, default) if channels is None else channels.astype(np.float64)
        return np.repeat(wide, columns // len(wide))

    factor = 1 / by_column(scale, 1.0)
    # The graph subtracts the origin in float32.
    start = None if origin is None else origin.astype(np.float32)
    moved = by_column(center, 0.0) - by_column(start, 0.0) * factor
    before = moments.plain * factor
    mean = before - moments.count * moved
    square = None
    if moments.square is not None:
        square = moments.square * factor
        square *= factor[:, None]
        for k in range(columns if np.any(moved) else 0):
            square[k] -= before[k] * moved + moved[k] * mean
        if activation.grid == "uniform":
            assert activation.scale is not None
            square.flat[:: columns + 1] += moments.count * activation.scale**2 / 12
    return HessianSums(moments.count, square, mean, mean)
