"""Sums second moments of inputs as they are, and turns them into those of candidate scalings.

One sum of an input serves every candidate: the moments of x / s - p follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.hessian import HessianSums
from ...calibrate.observers.smoothed import SmoothedInput
from ...graph.linears import site_node, site_weight
from ...numerics.weight import quantize_weight
from ..groups import InputGroup
from ..rounding import RoundingTask, is_plain, moments_of_tasks

Floats = NDArray[np.float64]


def input_tasks(
    graph: ir.Graph, group: InputGroup, count: int, *, correct: bool
) -> list[RoundingTask]:
    """Return the weights of a group that data rounds, their input as it is before any scaling.

    `count` is how many elements a channel has over the samples, `correct` asks for corrected
    biases. Sites whose rows cannot be made are left out.
    """
    found = []
    for site in group.sites:
        entry, node = group.entries[site.name], site_node(graph, site)
        if RoundingTask.needed(entry, correct=correct) and is_plain(node, site):
            assert entry.weight is not None
            found.append(
                RoundingTask(
                    site,
                    entry,
                    node,
                    SmoothedInput(site.input, site.channel_axis),
                    None,
                    count,
                    partial(site_weight, graph, site),
                    partial(quantize_weight, weight_format=entry.weight),
                )
            )
    return found


def around_means(
    run: CalibrationRun, tasks: Sequence[RoundingTask], *, max_memory: int
) -> list[RoundingTask]:
    """Return tasks whose inputs are observed around their means in the first sample of a run.

    So squares are least, and what a centre adds takes no digits away. The middle of a range would
    not do, which a heavy tail moves far from the mean.
    """
    start = run.part.start or 0
    first = run.of(slice(start, start + 1))
    few = [replace(task, count=-(-task.count // max(1, run.size))) for task in tasks]
    origins = {
        task.site.name: channel_means(task, moments)
        for task, moments in summed(first, few, max_memory=max_memory, squares=False)
    }
    return [replace(task, view=replace(task.view, shift=origins[task.site.name])) for task in tasks]


def summed(
    run: CalibrationRun,
    tasks: Sequence[RoundingTask],
    *,
    max_memory: int,
    squares: bool | None = None,
) -> Iterator[tuple[RoundingTask, HessianSums]]:
    """Yield tasks with the moments of their rows over the samples of a run, and their means.

    There are squares as in `moments_of_tasks`; no task takes no pass.
    """
    if tasks:
        yield from moments_of_tasks(run, tasks, means=True, max_memory=max_memory, squares=squares)


def channel_means(task: RoundingTask, moments: HessianSums) -> Floats:
    """Return the mean of each input channel over all taps of a kernel, [C]."""
    assert moments.plain is not None
    channels = task.weight().shape[1]
    means: Floats = moments.plain.reshape(channels, -1).mean(axis=1) / max(1, moments.count)
    return means


def scaled_moments(
    moments: HessianSums,
    origin: Floats | None,
    scale: NDArray[np.floating] | None,
    center: NDArray[np.floating] | None,
    noise: float,
) -> HessianSums:
    """Turn moments of x - `origin` into those of x / `scale` - `center`, all [C].

    A mean square of `noise` with mean 0 is added to each element, as a grid's rounding does. One
    array of [K, K] is made.
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
        square.flat[:: columns + 1] += moments.count * noise
    return HessianSums(moments.count, square, mean, mean)
