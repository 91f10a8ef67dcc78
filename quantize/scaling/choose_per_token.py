"""Choose the channel scales of inputs with scales per token, on samples they were not fitted to.

A range a channel is many parameters from few samples: proj inputs follow the class of a picture, so
that a SmoothQuant scale of 16 pictures fits 16 classes, and a site's error on other pictures can be
10 dB above that on its own (a planted model of real width, 8 bits). Every method is fitted to one
half of the samples and judged on the other, few samples also the other way round, with weights
rounded as the plan says. Not to scale is a method too, and wins unless another is better on every
half; what is chosen is fitted to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.smoothed import Scaling
from ...calibrate.statistics import POSITION
from ...recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..groups import InputGroup
from .distances import ratio
from .fit import Method, fit_scalings, levelled, method_of, round_inputs
from .token_rounding import TokenTrial, weight_errors

METHODS = (
    Method(None),
    Method(0.5),
    Method(0.5, centered=True),
    Method(0.7),
    Method("gps"),
    Method("gps", centered=True),
)
GAIN_DB = 0.1  # what another method must gain on none
FEW = 16  # samples up to which both halves judge
EVERY = 2  # of the grids' clips is judged: methods are compared, and the time goes into grids


def scale_groups(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    run: CalibrationRun,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> dict[str, Scaling]:
    """Return the scaling of each group by the method that its plan names, or that is best.

    Second moments stay below `max_memory` bytes.
    """
    searched = [group for group in groups if group.entry.smoothing == "search"]
    methods = {}
    if searched:
        methods = search_methods(graph, searched, run, options, max_memory=max_memory)
    methods |= {g.key: method_of(g.entry) for g in groups if g.entry.smoothing != "search"}
    scaled = [group for group in groups if methods[group.key].scales is not None]
    return fit_scalings(methods, graph, groups, levelled(scaled, run), run, options)


def search_methods(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    run: CalibrationRun,
    options: QuantizeOptions,
    *,
    max_memory: int,
) -> dict[str, Method]:
    """Return the method whose held-out error is least, by each group's key.

    All methods are fitted and judged in the same runs.

    Raises:
        CalibrationError: fewer than two samples.
    """
    one, other = run.first_half(), run.second_half()
    folds = [(one, other), (other, one)] if run.size <= FEW else [(one, other)]
    errors: dict[str, list[list[float]]] = {group.key: [] for group in groups}
    for fitted, judged in folds:
        half = of_samples(groups, fitted)
        trials = {
            method: [replace(group, trial=f"@{k}" if k else "") for group in half]
            for k, method in enumerate(METHODS)
        }
        every = [group for members in trials.values() for group in members]
        methods = {g.key: method for method, members in trials.items() for g in members}
        scalings = fit_scalings(methods, graph, every, levelled(half, fitted), fitted, options)
        found = judged_errors(
            graph, every, scalings, fitted, judged, options, max_memory=max_memory
        )
        for k, group in enumerate(half):
            errors[group.key].append([found[members[k].key] for members in trials.values()])
    return {key: best_method(by_fold) for key, by_fold in errors.items()}


def best_method(errors: Sequence[Sequence[float]]) -> Method:
    """Return the method that relative to none is best on its worst half; none wins `GAIN_DB`.

    `errors` of `METHODS` in their order, of which the first is none, for each half.
    """
    worst = [max(ratio(half[k], half[0]) for half in errors) for k in range(len(METHODS))]
    worst[0] = 10 ** (-GAIN_DB / 10)
    return METHODS[int(np.argmin(worst))]


def of_samples(groups: Sequence[InputGroup], part: CalibrationRun) -> list[InputGroup]:
    """Return the groups with statistics of the samples of `part` alone."""
    seen = part.ranges({group.key: group.plain for group in groups})
    return [
        replace(
            group,
            stats=seen[group.key],
            tokens=group.tokens and seen[f"{group.key}{POSITION}"].filled(),
        )
        for group in groups
    ]


def judged_errors(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    scalings: Mapping[str, Scaling],
    fitted: CalibrationRun,
    judged: CalibrationRun,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> dict[str, float]:
    """Return the squared error per sample of each group's products.

    That of inputs is on grids fitted to the one half, seen on the other; so is that of weights,
    which are rounded as the plan says.
    """
    rounded = round_inputs(groups, scalings, fitted, judged, options, EVERY)
    trials = [TokenTrial(group, scalings[group.key], rounded[group.key]) for group in groups]
    of_weights = weight_errors(graph, trials, fitted, judged, options, max_memory=max_memory)
    found = {}
    for key, made in rounded.items():
        assert made.noise is not None
        found[key] = made.noise / judged.size + of_weights[key]
    return found
