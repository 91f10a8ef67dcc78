"""Rounds the weights of candidate scalings as the plan rounds those of the chosen one.

GPTQ and corrected biases need second moments of what a candidate feeds its products. Those of the
input as it is are summed once over the samples that candidates are fitted to; each candidate's, of
x / s - p, follow from them. The rounding of inputs adds uniform noise to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...numerics.gptq import STEPS
from ...numerics.scheme import ActivationFormat
from ...recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..groups import InputGroup, site_statistics
from ..rounding import RoundingTask, rounded_weight
from ..separate_graphs import input_scaling, round_to_nearest, scaled_weight
from .moments import around_means, input_tasks, scaled_moments, summed
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
    Nothing is done again that the fold holds already.
    """
    group_of = {site.name: group for group in groups for site in group.sites}
    found = {
        (site.name, way): fold.rounded[site.name, way]
        for group in groups
        for site in group.sites
        for way in ways[group.key]
        if (site.name, way) in fold.rounded
    }
    tasks = [
        task
        for group in groups
        for task in input_tasks(
            graph,
            group,
            int(site_statistics(fold.fitted, group.name).count),
            correct=options.bias_correction,
        )
        if any((task.site.name, way) not in found for way in ways[group.key])
    ]
    still: list[RoundingTask] = []
    moved: list[RoundingTask] = []
    for task in tasks:
        centered = any(way.centered for way in ways[group_of[task.site.name].key])
        (moved if centered else still).append(task)
    fitted = run.of(fold.part)
    tasks = still + around_means(fitted, moved, max_memory=max_memory)
    for task, moments in summed(fitted, tasks, max_memory=max_memory):
        site, group = task.site, group_of[task.site.name]
        tried = [way for way in ways[group.key] if (site.name, way) not in found]
        trials = fit_ways(graph, group, tried, fold, options)
        for way, trial in zip(tried, trials, strict=True):
            noise = grid_noise(trial.activation)
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
                scaled_moments(moments, task.view.shift, scale, center, noise),
                compensates=task.compensates,
                correct=options.bias_correction,
                steps=STEPS[:1],
            )
    return found


def grid_noise(activation: ActivationFormat) -> float:
    """Return the mean square of what a grid rounds off; FP8's differs by number and counts as 0."""
    if activation.grid == "fp8":
        return 0.0
    assert activation.scale is not None
    return activation.scale**2 / 12
