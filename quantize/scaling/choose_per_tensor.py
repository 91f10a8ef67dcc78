"""Choose the scaling of each input on samples that it was not fitted to.

Every candidate is fitted to one half of the samples and judged on the other, then the other way
round; few samples are halved in two manners. It counts as much as on the half where it gains least,
since the rare large values of a heavy tail decide a sum over halves. Not to scale is always a
candidate, and wins unless another is better on every half.

First each input is judged alone, then whole graphs: some choices for all inputs, among them none
for all and those of least predicted error. Sites that gain alone can lose together: of PP-OCRv4's
recognizer 0.7 dB against none, where the best choice for the whole gains 3.5. Where no choice gains
on every half, whole graphs are judged by a typical sample (`distances.Loss`). To begin with that,
or for single inputs, is too eager: of the same recognizer, calibrated on 32 lines, it scaled 27 of
31 inputs and lost 1.4 dB on others, where the worst half finds what gains 3.3.

Weights are rounded as the plan says, by GPTQ and with corrected biases where it has them, both by
the half that a candidate is fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.statistics import Statistics
from ...graph.linears import LINEAR_OPS
from ...graph.sites import SiteMap
from ...numerics.weight import QuantizedWeight
from ...recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..groups import InputGroup, site_statistics, summarize
from ..plan import ATTENTION_ROLES
from .distances import Off, best, loss, ratio
from .gps import gain_scalings_of
from .predicted import Way, predicted_error, way_of
from .trial_parts import judged_in_turn, parts_of
from .trial_rounding import round_trials
from .trials import Fold, TrialWeights, quantize_whole, run_whole, trial_distance

NONE = Way(None)
WAYS = (
    NONE,
    Way(0.5),
    Way("predicted"),
    Way(None, centered=True),
    Way(0.5, centered=True),
    Way("predicted", centered=True),
)
GAIN_WAYS = (Way("gps"), Way("gps", centered=True))
# A shift a channel that costs nodes must gain this on the best without one, since it also keeps a
# padding out of a fast integer convolution on CPUs.
CENTER_GAIN_DB = 1.0
# What another candidate must gain on none wherever it is judged alone, and a centre on others. Of
# small networks with heavy-tailed inputs, calibrated on 8 to 64 rows, what gains 0.1 to 0.2 dB on a
# half loses 2 dB on other rows.
STRICTNESS = ((0.3, CENTER_GAIN_DB), (0.3, 0.0), (3.0, CENTER_GAIN_DB))
# What a choice for a whole graph must gain on none.
WHOLE_GAIN_DB = 0.3
# Of each half as many samples are judged on as have so many rows of the longest input, but so many
# at least: large calibrations cost a pass or two more.
JUDGED_ROWS, LEAST_JUDGED = 256, 8
# Of weights that were rounded for single inputs, to be kept for whole graphs; others are rounded
# again.
KEPT_BYTES = 2**28
# Elements of a graph's weights beyond which a changed copy may pass protobuf's 2 GB.
LARGEST_COPY = 2**30


def search_ways(
    run: CalibrationRun,
    site_map: SiteMap,
    graphs: Mapping[str, ir.Graph],
    groups: Sequence[InputGroup],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> dict[str, Way]:
    """Return how each searched input is scaled, by the key of its group.

    `graphs` are those of the run, `statistics` of all its samples. One sample cannot judge another:
    nothing is scaled then. Second moments stay below `max_memory` bytes.
    """
    searched = [group for group in groups if is_searched(group)]
    count = run.size
    if not searched or count < 2:
        return {group.key: NONE for group in searched}
    rows = max(int(np.max(site_statistics(statistics, g.key).count)) for g in searched) / count
    most = max(LEAST_JUDGED, math.ceil(JUDGED_ROWS / max(rows, 1)))
    errors: dict[str, list[dict[Way, float]]] = {group.key: [] for group in searched}
    left = {group.key: ways_for(group, options) for group in searched}
    tried = {group.key: left.get(group.key) or [way_of(group, {})] for group in groups}
    folds: list[Fold] = []
    unscaled: dict[str, QuantizedWeight] = {}
    for fitted, judged in split_samples(count, most):
        ranges = completed(run.of(fitted).channel_ranges(site_map), statistics)
        by_gain = gain_scalings_of(run.of(fitted), graphs, groups, tried, ranges, options)
        folds.append(Fold(ranges, fitted, thinned(judged, most), by_gain, unscaled=unscaled))
    kept = 0
    for fold in folds:
        undecided = [group for group in searched if len(left[group.key]) > 1]
        for part in parts_of(undecided, left):
            rounded: TrialWeights = {}
            for name in dict.fromkeys(group.graph for group in part):
                inside = [group for group in part if group.graph == name]
                rounded |= round_trials(
                    run, graphs[name], inside, left, fold, options, max_memory=max_memory
                )
            kept += sum(known.weight.q.nbytes for known in rounded.values())
            if kept <= KEPT_BYTES:
                fold.rounded.update(rounded)
            for key, by_way in judged_in_turn(run, part, fold, left, rounded, options).items():
                errors[key].append(by_way)
                left[key] = still_able(by_way)
    found: dict[str, Way] = {}
    for name, graph in graphs.items():
        inside = [group for group in groups if group.graph == name]
        choices = choices_of(graph, inside, errors, statistics, options)
        found |= best_choice(run, graph, inside, choices, folds, options, max_memory=max_memory)
    return found


def completed(part: Statistics, whole: Statistics) -> Statistics:
    """Return statistics of some samples, or of all where some have no element of a tensor."""
    return {key: stats if np.any(stats.count) else whole[key] for key, stats in part.items()}


def still_able(errors: Mapping[Way, float]) -> list[Way]:
    """Return none, and the ways that a half shows to be better; the rest cannot win any more."""
    none = errors.get(NONE, math.inf)
    return [way for way, error in errors.items() if way == NONE or error < none]


def choices_of(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    errors: Mapping[str, Sequence[Mapping[Way, float]]],
    statistics: Statistics,
    options: QuantizeOptions,
) -> list[dict[str, Way]]:
    """Return sets of ways for all searched inputs of a graph, without one that repeats another.

    The first is none for all; then come those that gain more or less alone. The last has the least
    predicted error.
    """
    searched = [group for group in groups if is_searched(group)]
    choices = [{group.key: none_of(ways_for(group, options)) for group in searched}]
    for gain, center in STRICTNESS:
        choices.append(
            {
                g.key: best_way(errors[g.key], gain_db=gain, center_db=0 if g.subtracts else center)
                for g in searched
            }
        )
    choices.append({g.key: predicted_way(graph, g, statistics, options) for g in searched})
    return [choice for k, choice in enumerate(choices) if choice not in choices[:k]]


def none_of(ways: Sequence[Way]) -> Way:
    return next(way for way in ways if way.scales is None)


def predicted_way(
    graph: ir.Graph, group: InputGroup, statistics: Statistics, options: QuantizeOptions
) -> Way:
    """Choose by predicted error; a centre that is not free has to gain `CENTER_GAIN_DB`."""
    stats, users = group.seen(statistics), summarize(graph, group.sites)
    errors = {}
    for way in ways_for(group, options):
        if way.scales == "predicted":
            scale = way.fit(stats, users, group.bits).smoothing
            error = predicted_error(stats, users, scale, group.bits, centered=way.centered)
            dear = way.centered and not group.subtracts
            errors[way] = error * 10 ** (CENTER_GAIN_DB / 10 * dear)
    return min(errors, key=lambda way: errors[way])


def best_choice(
    run: CalibrationRun,
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    choices: Sequence[dict[str, Way]],
    folds: Sequence[Fold],
    options: QuantizeOptions,
    *,
    max_memory: int,
) -> dict[str, Way]:
    """Return the choice whose outputs gain most on none, which wins what is within `WHOLE_GAIN_DB`.

    `groups` are all those of the graph.
    """
    elements = sum(int(np.prod(site.weight_shape)) for g in groups for site in g.sites)
    if len(choices) == 1 or elements > LARGEST_COPY:
        return choices[min(1, len(choices) - 1)]
    found: list[list[Off]] = [[] for _ in choices]
    left = list(range(1, len(choices)))
    for fold in folds:
        if not left:
            break
        name = groups[0].graph
        exact = run_whole(run, name, fold, lambda _: None)
        for batch in batches_of((0, *left), elements):
            tried = {
                g.key: list(dict.fromkeys(way_of(g, choices[k]) for k in batch)) for g in groups
            }
            rounded = round_trials(run, graph, groups, tried, fold, options, max_memory=max_memory)
            for k in batch:
                trial = partial(
                    quantize_whole,
                    groups=groups,
                    ways=choices[k],
                    rounded=rounded,
                    fold=fold,
                    options=options,
                )
                found[k].append(trial_distance(run, name, fold, trial, exact))
        losses = {k: loss(found[k], found[0]) for k in left}
        left = [k for k, each in losses.items() if each.worst < 1 or each.typical < math.inf]
    chosen = best({k: loss(found[k], found[0]) for k in left}, WHOLE_GAIN_DB)
    return choices[0 if chosen is None else chosen]


def batches_of(choices: Sequence[int], elements: int) -> list[Sequence[int]]:
    """Split choices into batches whose weights have `LARGEST_COPY` elements, one at least."""
    size = max(1, LARGEST_COPY // max(1, elements))
    return [choices[k : k + size] for k in range(0, len(choices), size)]


def split_samples(count: int, most: int) -> list[tuple[slice, slice]]:
    """Split samples into what candidates are fitted to, and what they are judged on.

    The first and the second half; also every other one, where halves are of `most` or fewer.
    """
    middle = (count + 1) // 2
    halves = [(slice(0, middle), slice(middle, count))]
    if 2 < count <= 2 * most:
        halves.append((slice(0, count, 2), slice(1, count, 2)))
    return [pair for one, other in halves for pair in ((one, other), (other, one))]


def thinned(half: slice, most: int) -> slice:
    """Return at most `most` samples of a half, spread over it."""
    step = half.step or 1
    size = -(-(half.stop - half.start) // step)
    return slice(half.start, half.stop, step * max(1, -(-size // most)))


def best_way(errors: Sequence[Mapping[Way, float]], *, gain_db: float, center_db: float) -> Way:
    """Return the way that does best on the half where it does worst, relative to none.

    None wins what is within `gain_db`; a centre must gain `center_db` on the best without one.
    """
    ways = [way for way in errors[0] if all(way in half for half in errors)]
    base = [half[NONE if NONE in half else ways[0]] for half in errors]
    worst = {
        way: max(ratio(half[way], none) for half, none in zip(errors, base, strict=True))
        for way in ways
    }
    if NONE not in worst:
        return min(worst, key=lambda way: worst[way])
    worst[NONE] = 10 ** (-gain_db / 10)
    plain = min((w for w in worst if not w.centered), key=lambda way: worst[way])
    moved = min((w for w in worst if w.centered), key=lambda way: worst[way], default=NONE)
    needed = 10 ** (center_db / 10)
    reached = 1.0 if plain == NONE else worst[plain]
    if worst[moved] < worst[plain] and worst[moved] * needed < reached:
        return moved
    return plain


def ways_for(group: InputGroup, options: QuantizeOptions) -> list[Way]:
    """List the ways that a plan allows; a plan that has a scale says whether there are centres."""
    activation = group.entry.activation
    assert activation is not None
    if activation.scale is not None:
        return [way for way in WAYS if way.centered == activation.centered]
    movable = options.shift and activation.grid == "uniform"
    ways = (*WAYS, *GAIN_WAYS) if tries_gains(group) else WAYS
    return [way for way in ways if movable or not way.centered]


def is_searched(group: InputGroup) -> bool:
    """Return whether samples left out choose the scaling: a plan with a scale names its GPS."""
    smoothing = group.entry.smoothing
    return smoothing == "search" or (smoothing == "gps" and group.activation.scale is None)


def tries_gains(group: InputGroup) -> bool:
    """Return whether GPS is a candidate: at linears and the projections of an attention.

    The plan has to name it. In a search by default it has not paid: a transformer of rar-mini as a
    custom graph takes it at 9 of 32 inputs at 8 bits, and its logits lose 0.2 dB on other samples.
    """
    able = all(site.op in LINEAR_OPS or site.role in ATTENTION_ROLES for site in group.sites)
    return able and group.entry.smoothing == "gps"
