"""The scaling of each input, chosen on samples that it was not fitted to.

Every candidate is fitted to one half of the samples and judged on the other, then the other way
round; few samples are halved in two manners. It counts as much as on the half where it gains least,
since the rare large values of a heavy tail decide a sum over halves. Not to scale is always a
candidate, and wins unless another is better on every half.

First each input alone: in a copy of the graph each product stands beside its quantized forms, which
read the same input in FP32, and what they are off is summed. Then whole graphs: some choices for
all inputs, among them none for all, quantize the graph, and its outputs are compared with FP32's.
Sites that gain alone can lose together: of PP-OCRv4's recognizer 0.7 dB against none, where the
best choice for the whole gains 3.5.

Weights are rounded to nearest in all of that, GPTQ's too, whose codes would need second moments for
every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..recipe import QuantizeOptions
from ..runtime.feeds import sample_files
from ..sites import ActivationFormat, Site, SiteMap, SitePlan
from .activations import (
    Reading,
    find_readings,
    format_of,
    fp8_format,
    site_node,
    site_statistics,
    summarize,
    way_of,
)
from .observers import Reducer, load_graph
from .passes import Outputs, Progress, collect_ranges, run_instrumented
from .qdq import insert_qdq, rewrite_convolution
from .qdq_linear import rewrite_linear
from .qdq_nodes import LINEAR_OPS, SiteWeights, offset_output
from .scaled_weights import input_scaling, nearest, scaled_weight
from .scaling import Scaling, Way, clip_candidates, predicted_error, ratio
from .statistics import Statistics

Array = NDArray[np.generic]
NONE = Way(None)
WAYS = (
    NONE,
    Way(0.5),
    Way("predicted"),
    Way(None, centered=True),
    Way(0.5, centered=True),
    Way("predicted", centered=True),
)
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
# Of codes of all candidates that a changed copy of a graph holds; more take further passes.
CODES_BYTES = 2**28
LARGEST_COPY = 2**30  # codes of a graph beyond which a changed copy may pass protobuf's 2 GB


@dataclass(frozen=True, slots=True)
class Samples:
    """An export's graphs, what they are fed, and how."""

    export: Path
    folder: Path
    site_map: SiteMap
    batch_size: int
    progress: Progress

    def run(
        self,
        graphs: Sequence[str],
        part: slice,
        instrument: Callable[[str, ir.Graph], None],
        consume: Callable[[str, Outputs], None],
    ) -> None:
        """Up to the last of `graphs`, which alone count."""
        last = max(self.site_map.graphs.index(graph) for graph in graphs)
        run_instrumented(
            self.export,
            self.folder,
            self.site_map.graphs[: last + 1],
            batch_size=self.batch_size,
            instrument=instrument,
            consume=consume,
            progress=self.progress,
            part=part,
        )

    def ranges(self, part: slice) -> Statistics:
        return collect_ranges(
            self.export,
            self.folder,
            self.site_map,
            batch_size=self.batch_size,
            progress=self.progress,
            part=part,
        )


@dataclass(frozen=True, slots=True)
class Fold:
    """Statistics of some samples, and which others judge what is fitted to them."""

    fitted: Statistics
    judged: slice


def search_ways(
    source: Samples,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
) -> dict[str, Way]:
    """How each searched input is scaled, by the name of the first site that reads it.

    `statistics` are of all samples. One sample cannot judge another: nothing is scaled then.
    """
    graphs = source.site_map.graphs
    models = {graph: load_graph(source.export / f"{graph}.onnx").graph for graph in graphs}
    readings = {
        graph: find_readings(models[graph], source.site_map.of_graph(graph), entries)
        for graph in graphs
    }
    searched = [r for g in graphs for r in readings[g] if r.entry.smoothing == "search"]
    count = len(sample_files(source.folder))
    if not searched or count < 2:
        return {r.key: NONE for r in searched}
    rows = max(int(np.max(site_statistics(statistics, r.key).count)) for r in searched) / count
    most = max(LEAST_JUDGED, math.ceil(JUDGED_ROWS / max(rows, 1)))
    folds = [
        Fold(source.ranges(fitted), thinned(judged, most))
        for fitted, judged in split_samples(count, most)
    ]
    errors: dict[str, list[dict[Way, float]]] = {r.key: [] for r in searched}
    left = {r.key: ways_for(r, options) for r in searched}
    for fold in folds:
        open_ones = [r for r in searched if len(left[r.key]) > 1]
        for part in parts_of(open_ones, left):
            for key, by_way in judged_errors(source, part, fold, left, options).items():
                errors[key].append(by_way)
                left[key] = still_able(by_way)
    found: dict[str, Way] = {}
    for graph in graphs:
        choices = choices_of(models[graph], readings[graph], errors, statistics, options)
        found |= best_choice(source, graph, readings[graph], choices, folds, options)
    return found


def still_able(errors: Mapping[Way, float]) -> list[Way]:
    """None, and what a half shows to be better; the rest cannot win any more."""
    none = errors.get(NONE, math.inf)
    return [way for way, error in errors.items() if way == NONE or error < none]


def choices_of(
    graph: ir.Graph,
    readings: Sequence[Reading],
    errors: Mapping[str, Sequence[Mapping[Way, float]]],
    statistics: Statistics,
    options: QuantizeOptions,
) -> list[dict[str, Way]]:
    """Ways for all searched inputs of a graph: none first, then what gains more or less alone.

    The last is of least predicted error. None is there twice.
    """
    searched = [r for r in readings if r.entry.smoothing == "search"]
    choices = [{r.key: none_of(ways_for(r, options)) for r in searched}]
    for gain, center in STRICTNESS:
        choices.append(
            {
                r.key: best_way(
                    errors[r.key], gain_db=gain, center_db=0 if r.free_center else center
                )
                for r in searched
            }
        )
    choices.append({r.key: predicted_way(graph, r, statistics, options) for r in searched})
    return [choice for k, choice in enumerate(choices) if choice not in choices[:k]]


def none_of(ways: Sequence[Way]) -> Way:
    return next(way for way in ways if way.scales is None)


def predicted_way(
    graph: ir.Graph, reading: Reading, statistics: Statistics, options: QuantizeOptions
) -> Way:
    """Of least predicted error, a centre that is not free where it gains `CENTER_GAIN_DB`."""
    stats, users = reading.seen(statistics), summarize(graph, reading.sites)
    errors = {}
    for way in ways_for(reading, options):
        if way.scales == "predicted":
            scale = way.fit(stats, users, reading.bits).smoothing
            error = predicted_error(stats, users, scale, reading.bits, centered=way.centered)
            dear = way.centered and not reading.free_center
            errors[way] = error * 10 ** (CENTER_GAIN_DB / 10 * dear)
    return min(errors, key=lambda way: errors[way])


def best_choice(
    source: Samples,
    graph: str,
    readings: Sequence[Reading],
    choices: Sequence[dict[str, Way]],
    folds: Sequence[Fold],
    options: QuantizeOptions,
) -> dict[str, Way]:
    """That whose outputs are best on the half where they are worst; none wins `WHOLE_GAIN_DB`."""
    codes = sum(int(np.prod(site.weight_shape)) for r in readings for site in r.sites)
    if len(choices) == 1 or codes > LARGEST_COPY:
        return choices[min(1, len(choices) - 1)]
    worst = [10 ** (-WHOLE_GAIN_DB / 10), *(0.0 for _ in choices[1:])]
    for fold in folds:
        left = [k for k in range(1, len(choices)) if worst[k] < worst[0]]
        if not left:
            break
        exact = run_whole(source, graph, fold, lambda _: None)
        found = {}
        for k in (0, *left):
            trial = partial(
                quantize_whole,
                readings=readings,
                ways=choices[k],
                fitted=fold.fitted,
                options=options,
            )
            found[k] = trial_distance(source, graph, fold, trial, exact)
        for k in left:
            worst[k] = max(worst[k], ratio(found[k], found[0]))
    return choices[int(np.argmin(worst))]


def trial_distance(
    source: Samples,
    graph: str,
    fold: Fold,
    trial: Callable[[ir.Graph], None],
    exact: Mapping[str, list[Array]],
) -> float:
    """Infinite where the quantized graph makes NaN or infinity of what was finite in FP32."""
    try:
        return distance(run_whole(source, graph, fold, trial), exact)
    except CalibrationError:
        return math.inf


def run_whole(
    source: Samples, graph: str, fold: Fold, change: Callable[[ir.Graph], None]
) -> dict[str, list[Array]]:
    """The outputs of a changed graph by name, in the order of the judged samples."""
    found: dict[str, list[Array]] = {}
    names: list[str] = []

    def instrument(name: str, found_graph: ir.Graph) -> None:
        if name == graph:
            names.extend(str(value.name) for value in found_graph.outputs)
            change(found_graph)

    def consume(name: str, outputs: Outputs) -> None:
        if name == graph:
            for output in names:
                found.setdefault(output, []).append(outputs[output])

    source.run([graph], fold.judged, instrument, consume)
    return found


def distance(found: Mapping[str, list[Array]], exact: Mapping[str, list[Array]]) -> float:
    """Squared error over signal, summed over float outputs; of integers the share that differs."""
    floats = [n for n, v in exact.items() if np.issubdtype(v[0].dtype, np.floating)]
    total = 0.0
    for name in floats or exact:
        pairs = [
            (one.astype(np.float64), other.astype(np.float64))
            for one, other in zip(found[name], exact[name], strict=True)
        ]
        if floats:
            error = sum(float(np.sum(np.square(one - other))) for one, other in pairs)
            signal = sum(float(np.sum(np.square(other))) for _, other in pairs)
        else:
            error = sum(float(np.sum(one != other)) for one, other in pairs)
            signal = sum(float(other.size) for _, other in pairs)
        total += error / max(signal, np.finfo(np.float64).tiny)
    return total


def split_samples(count: int, most: int) -> list[tuple[slice, slice]]:
    """What candidates are fitted to, and what they are judged on.

    The first and the second half; also every other one, where halves are of `most` or fewer.
    """
    middle = (count + 1) // 2
    halves = [(slice(0, middle), slice(middle, count))]
    if 2 < count <= 2 * most:
        halves.append((slice(0, count, 2), slice(1, count, 2)))
    return [pair for one, other in halves for pair in ((one, other), (other, one))]


def thinned(half: slice, most: int) -> slice:
    """At most `most` samples of a half, spread over it."""
    step = half.step or 1
    size = -(-(half.stop - half.start) // step)
    return slice(half.start, half.stop, step * max(1, -(-size // most)))


def best_way(errors: Sequence[Mapping[Way, float]], *, gain_db: float, center_db: float) -> Way:
    """The candidate that on the half where it does worst, relative to none, does best.

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


def ways_for(reading: Reading, options: QuantizeOptions) -> list[Way]:
    """What a plan allows: one that has a scale says whether there are centres."""
    activation = reading.entry.activation
    assert activation is not None
    if activation.scale is not None:
        return [way for way in WAYS if way.centered == activation.centered]
    movable = options.shift and activation.grid == "uniform"
    return [way for way in WAYS if movable or not way.centered]


def parts_of(
    readings: Sequence[Reading], ways: Mapping[str, Sequence[Way]]
) -> Iterator[list[Reading]]:
    """In their order, those whose candidates' codes fit into one changed copy of a graph."""
    part: list[Reading] = []
    size = 0
    for reading in readings:
        weights = sum(int(np.prod(site.weight_shape)) for site in reading.sites)
        alone = weights * len(ways[reading.key])
        if part and size + alone > CODES_BYTES:
            yield part
            part, size = [], 0
        part.append(reading)
        size += alone
    if part:
        yield part


def judged_errors(
    source: Samples,
    readings: Sequence[Reading],
    fold: Fold,
    ways: Mapping[str, Sequence[Way]],
    options: QuantizeOptions,
) -> dict[str, dict[Way, float]]:
    """Squared error of the products of each reading by candidate, over the judged samples.

    `ways` are the candidates of each reading.

    Scales, centres and grids are of the fitted ones; grids span all that was seen there.
    """
    found: dict[str, dict[Way, float]] = {r.key: dict.fromkeys(ways[r.key], 0.0) for r in readings}
    tensors: dict[str, list[tuple[str, str, Way]]] = {}

    def instrument(graph_name: str, graph: ir.Graph) -> None:
        here = [r for r in readings if r.sites[0].graph == graph_name]
        for k, reading in enumerate(here):
            tried = ways[reading.key]
            trials = fit_ways(graph, reading, tried, fold.fitted, options)
            for n, (way, trial) in enumerate(zip(tried, trials, strict=True)):
                for m, site in enumerate(reading.sites):
                    label = f"trial.{graph_name}.{k}.{n}.{m}"
                    observe_trial(graph, site, reading, trial, fold.fitted, options, label)
                    named = tensors.setdefault(graph_name, [])
                    named.append((f"{label}:noise", reading.key, way))

    def consume(graph_name: str, outputs: Outputs) -> None:
        for tensor, key, way in tensors.get(graph_name, ()):
            found[key][way] += float(outputs[tensor].astype(np.float64).sum())

    source.run([r.sites[0].graph for r in readings], fold.judged, instrument, consume)
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """A fitted candidate and the grid that its values are rounded to."""

    scaling: Scaling
    activation: ActivationFormat


def fit_ways(
    graph: ir.Graph,
    reading: Reading,
    ways: Sequence[Way],
    fitted: Statistics,
    options: QuantizeOptions,
) -> list[Trial]:
    stats, users = reading.seen(fitted), summarize(graph, reading.sites)
    found = []
    for way in ways:
        scaling = way.fit(stats, users, reading.bits)
        activation = reading.entry.activation
        assert activation is not None
        if activation.grid == "fp8":
            chosen = fp8_format(stats, scaling)
        else:
            (grid,) = clip_candidates(
                stats, scaling, activation.bits, allow_shift=options.shift, fractions=(1.0,)
            )
            chosen = format_of(grid)
        found.append(Trial(scaling, chosen))
    return found


def quantize_whole(
    graph: ir.Graph,
    *,
    readings: Sequence[Reading],
    ways: Mapping[str, Way],
    fitted: Statistics,
    options: QuantizeOptions,
) -> None:
    """The Q/DQ form of all products with rounded inputs, their scales in nodes of their own."""
    chosen, sites = {}, []
    for reading in readings:
        (trial,) = fit_ways(graph, reading, [way_of(reading, ways)], fitted, options)
        for site in reading.sites:
            chosen[site.name] = trial_weights(graph, site, reading, trial, fitted, options)
            sites.append(msgspec.structs.replace(site, fold=None, producer_fold=None))
    insert_qdq(graph, sites, chosen)


def trial_weights(
    graph: ir.Graph,
    site: Site,
    reading: Reading,
    trial: Trial,
    fitted: Statistics,
    options: QuantizeOptions,
) -> SiteWeights:
    entry = reading.entries[site.name]
    weight = scaled_weight(graph, site, entry, trial.scaling)
    scale, center = input_scaling(entry, trial.scaling)
    return SiteWeights(
        nearest(weight, site, entry, fitted, options, trial.scaling),
        activation=trial.activation,
        smoothing=scale,
        center=center,
        center_output=None if center is None else offset_output(weight, center),
    )


def observe_trial(
    graph: ir.Graph,
    site: Site,
    reading: Reading,
    trial: Trial,
    fitted: Statistics,
    options: QuantizeOptions,
    label: str,
) -> None:
    """Add the output `LABEL:noise` [N, O]: sums of squares of what the quantized product is off."""
    node = site_node(graph, site)
    chosen = trial_weights(graph, site, reading, trial, fitted, options)
    again = ir.node(node.op_type, node.inputs, dict(node.attributes), name=label)
    value = again.outputs[0]
    value.name, value.type, value.shape = label, ir.TensorType(ir.DataType.FLOAT), None
    graph.insert_after(node, again)
    own = msgspec.structs.replace(
        site, name=label, node=label, output=label, fold=None, producer_fold=None
    )
    if site.op in LINEAR_OPS:
        value = rewrite_linear(graph, again, own, chosen).outputs[0]
        while value.uses():
            value = next(iter(value.uses())).node.outputs[0]
    else:
        rewrite_convolution(graph, again, own, chosen)
    exact = node.outputs[0]
    rank = 4 if site.op not in LINEAR_OPS else site.channel_axis + 1
    error = ir.node("Sub", [value, exact], name=f"{label}:off")
    made = error.outputs[0]
    made.name, made.type = f"{label}:off", ir.TensorType(ir.DataType.FLOAT)
    made.shape = exact.shape if exact.shape is not None else ir.Shape([None] * rank)
    graph.append(error)
    Reducer(graph, made, site.channel_axis).add(
        f"{label}:noise", made, "ReduceSumSquare", "ReduceSum"
    )
