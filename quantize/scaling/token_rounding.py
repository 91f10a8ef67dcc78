"""Measures what the weights of candidate scalings lose, each rounded as the plan says.

For inputs with a scale per token, whose own rounding is measured apart. GPTQ and corrected biases
are fitted to one part of the samples, and what they lose is that on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.hessian import HessianSums
from ...calibrate.observers.smoothed import Scaling
from ...numerics.gptq import STEPS
from ...numerics.qparams import QParams
from ...numerics.weight import quantize_weight
from ...recipe.quantize import QuantizeOptions
from ..groups import InputGroup
from ..rounding import Rounded, RoundingTask, rounded_weight
from ..shared_graphs import importance_of
from .fit import RoundedInput, weight_energies
from .moments import around_means, input_tasks, scaled_moments, summed

Array = NDArray[np.float32]
# So many output channels of a weight are rounded, or up to twice as many, the same ones for all
# candidates: what GPTQ does to one channel does not depend on the others.
JUDGED_OUTPUTS = 256


@dataclass(frozen=True, slots=True)
class TokenTrial:
    """Hold a group's candidate scaling, and how the scaled input is rounded."""

    group: InputGroup
    scaling: Scaling
    rounded: RoundedInput

    def moments(self, task: RoundingTask, moments: HessianSums) -> HessianSums:
        """Return the moments of what the candidate feeds a product, by those of its input."""
        scale, center = self.scaling.smoothing, self.scaling.center
        shift = None if center is None else center / scale
        noise = grid_noise(self.rounded.qparams)
        return scaled_moments(moments, task.view.shift, scale, shift, noise)

    def weight(self, task: RoundingTask) -> Array:
        """Return the judged rows of the scaled weight, [O, I]."""
        weight = judged_rows(task)
        scale = self.scaling.smoothing.reshape(1, -1, *(1,) * (weight.ndim - 2))
        scaled: Array = (weight * scale).astype(np.float32)
        return scaled


def weight_errors(
    graph: ir.Graph,
    trials: Sequence[TokenTrial],
    fitted: CalibrationRun,
    judged: CalibrationRun,
    options: QuantizeOptions,
    *,
    max_memory: int,
) -> dict[str, float]:
    """Return the squared error per sample that rounded weights add to the products of each trial.

    It is by the key of the trial's group. What data rounds is fitted to `fitted` and measured on
    `judged`; what is rounded to nearest is not fitted, and `fitted` measures it.
    """
    tasks = tasks_of(graph, [trial.group for trial in trials], options)
    by_data = {task.site.name for task in tasks}
    found = {trial.group.key: 0.0 for trial in trials}
    for trial in trials:
        rest = tuple(site for site in trial.group.sites if site.name not in by_data)
        if rest:
            group = replace(trial.group, sites=rest)
            _, lost = weight_energies(graph, group, trial.scaling.smoothing)
            found[trial.group.key] += float(trial.rounded.channels.square @ lost) / fitted.size
    tasks = around_means(fitted, tasks, max_memory=max_memory)
    tried = {task.site.name: [t for t in trials if task.site in t.group.sites] for task in tasks}
    codes: dict[tuple[str, str], Rounded] = {}
    for task, moments in summed(fitted, tasks, max_memory=max_memory):
        for trial in tried[task.site.name]:
            codes[task.site.name, trial.group.key] = round_trial(task, trial, moments, options)
    for task, moments in summed(judged, tasks, max_memory=max_memory, squares=True):
        for trial in tried[task.site.name]:
            key, weight = trial.group.key, trial.weight(task)
            lost_rows = output_noise(
                weight, codes[task.site.name, key], trial.moments(task, moments)
            )
            found[key] += lost_rows * len(task.weight()) / len(weight) / judged.size
    return found


def tasks_of(
    graph: ir.Graph, groups: Sequence[InputGroup], options: QuantizeOptions
) -> list[RoundingTask]:
    """Return the weights that data rounds, once for all candidates of a group."""
    once = {group.name: group for group in groups}
    return [
        task
        for group in once.values()
        for task in input_tasks(
            graph, group, int(group.stats.count), correct=options.bias_correction
        )
    ]


def round_trial(
    task: RoundingTask, trial: TokenTrial, moments: HessianSums, options: QuantizeOptions
) -> Rounded:
    """Round the judged rows of a candidate's weight with the moments of its input."""
    planned = task.entry.weight
    assert planned is not None
    importance = importance_of(trial.rounded.channels.mean_square, planned, options)
    return rounded_weight(
        trial.weight(task),
        lambda weight: quantize_weight(weight, planned, importance),
        trial.moments(task, moments),
        compensates=task.compensates,
        correct=options.bias_correction,
        steps=STEPS[:1],
    )


def judged_rows(task: RoundingTask) -> Array:
    """Return the rows of a weight that are judged: all where they share a scale."""
    weight = task.weight()
    assert task.entry.weight is not None
    step = len(weight) // JUDGED_OUTPUTS if task.entry.weight.granularity != "per_tensor" else 1
    return weight[:: max(1, step)]


def output_noise(weight: Array, rounded: Rounded, moments: HessianSums) -> float:
    """Return the sum of |W x - Q x - b|^2 over rows x of these moments, b what the bias gains."""
    assert moments.square is not None and moments.plain is not None
    wide = weight.reshape(len(weight), -1).astype(np.float64)
    off = wide - rounded.weight.dequantize().reshape(wide.shape).astype(np.float64)
    total = float(((off @ moments.square) * off).sum())
    if rounded.bias_shift is not None:
        means = off @ moments.plain
        total += float(rounded.bias_shift @ (moments.count * rounded.bias_shift - 2 * means))
    return total


def grid_noise(qparams: QParams) -> float:
    """Return the mean square of what grids of tokens round off; FP8's counts as 0."""
    return 0.0 if qparams.dtype == "fp8" else float(np.mean(np.square(qparams.scale))) / 12
