"""The scaling of each input, chosen on samples that it was not fitted to.

Every candidate is fitted to one half of the samples and judged on the other, then the other way
round; few samples are halved in two manners. It counts as much as on the half where it gains least,
since the rare large values of a heavy tail decide a sum over halves. What is compared is the measured error of the products themselves: in a copy of the graph
each product stands beside its quantized forms, which read the same input in FP32. Weights are
rounded to nearest there, GPTQ's too, whose codes would need second moments for every candidate.
Not to scale is always a candidate, and wins unless another is better on every half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

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
    site_weight,
    summarize,
)
from .observers import Reducer, load_graph
from .passes import Outputs, Progress, collect_ranges, run_instrumented
from .qdq import rewrite_convolution
from .qdq_linear import rewrite_linear
from .qdq_nodes import LINEAR_OPS, SiteWeights, offset_output
from .scaled_weights import input_scaling, nearest, scaled_weight
from .scaling import Scaling, Way, clip_candidates
from .statistics import Statistics

NONE = Way(None)
WAYS = (
    NONE,
    Way(0.5),
    Way("predicted"),
    Way(None, centered=True),
    Way(0.5, centered=True),
    Way("predicted", centered=True),
)
# What another candidate must gain on none wherever it is judged. Of small networks with heavy-tailed
# inputs, calibrated on 8 to 64 rows, what gains 0.1 to 0.2 dB on a half loses 2 dB on other rows.
GAIN_DB = 0.3
# A shift a channel that costs nodes must gain this on the best without one, since it also keeps a
# padding out of a fast integer convolution on CPUs.
CENTER_GAIN_DB = 1.0
# Of each half as many samples are judged on as have so many rows of the longest input, but so many
# at least: large calibrations cost a pass or two more.
JUDGED_ROWS, LEAST_JUDGED = 256, 8
# Of codes of all candidates that a changed copy of a graph holds; more take further passes.
CODES_BYTES = 2**28


def search_ways(
    export: Path,
    samples: Path,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    batch_size: int,
    progress: Progress,
) -> dict[str, Way]:
    """How each searched input is scaled, by the name of the first site that reads it.

    `statistics` are of all samples. One sample cannot judge another: nothing is scaled then.
    """
    readings = {
        graph: [
            reading
            for reading in find_readings(
                load_graph(export / f"{graph}.onnx").graph, site_map.of_graph(graph), entries
            )
            if reading.entry.smoothing == "search"
        ]
        for graph in site_map.graphs
    }
    searched = [r for members in readings.values() for r in members]
    count = len(sample_files(samples))
    if not searched or count < 2:
        return {r.key: NONE for r in searched}
    rows = max(int(np.max(site_statistics(statistics, r.key).count)) for r in searched) / count
    most = max(LEAST_JUDGED, math.ceil(JUDGED_ROWS / max(rows, 1)))
    errors: dict[str, list[dict[Way, float]]] = {r.key: [] for r in searched}
    for half, judged in split_samples(count, most):
        fitted = collect_ranges(
            export, samples, site_map, batch_size=batch_size, progress=progress, part=half
        )
        for part in parts_of(searched, options):
            found = judged_errors(
                export,
                samples,
                site_map,
                part,
                fitted,
                options,
                part=thinned(judged, most),
                batch_size=batch_size,
                progress=progress,
            )
            for key, by_way in found.items():
                errors[key].append(by_way)
    return {r.key: best_way(errors[r.key], free_center=r.free_center) for r in searched}


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


def best_way(errors: Sequence[Mapping[Way, float]], *, free_center: bool) -> Way:
    """The candidate that on the half where it does worst, relative to none, does best.

    None wins what is within `GAIN_DB`; a centre that is not free must gain `CENTER_GAIN_DB` on the
    best candidate without one.
    """
    ways = list(errors[0])
    base = [half[NONE if NONE in half else ways[0]] for half in errors]
    worst = {
        way: max(ratio(half[way], none) for half, none in zip(errors, base, strict=True))
        for way in ways
    }
    if NONE not in worst:
        return min(worst, key=lambda way: worst[way])
    worst[NONE] = 10 ** (-GAIN_DB / 10)
    plain = min((w for w in worst if not w.centered), key=lambda way: worst[way])
    moved = min((w for w in worst if w.centered), key=lambda way: worst[way], default=NONE)
    needed = 1.0 if free_center else 10 ** (CENTER_GAIN_DB / 10)
    reached = 1.0 if plain == NONE else worst[plain]
    if worst[moved] < worst[plain] and worst[moved] * needed < reached:
        return moved
    return plain


def ratio(error: float, none: float) -> float:
    """Two errors of nothing are equal."""
    if none > 0:
        return error / none
    return 1.0 if error == 0 else np.inf


def ways_for(reading: Reading, options: QuantizeOptions) -> list[Way]:
    """What a plan allows: one that has a scale says whether there are centres."""
    activation = reading.entry.activation
    assert activation is not None
    if activation.scale is not None:
        return [way for way in WAYS if way.centered == activation.centered]
    movable = options.shift and activation.grid == "uniform"
    return [way for way in WAYS if movable or not way.centered]


def parts_of(readings: Sequence[Reading], options: QuantizeOptions) -> Iterator[list[Reading]]:
    """In their order, those whose candidates' codes fit into one changed copy of a graph."""
    part: list[Reading] = []
    size = 0
    for reading in readings:
        weights = sum(int(np.prod(site.weight_shape)) for site in reading.sites)
        alone = weights * len(ways_for(reading, options))
        if part and size + alone > CODES_BYTES:
            yield part
            part, size = [], 0
        part.append(reading)
        size += alone
    if part:
        yield part


def judged_errors(
    export: Path,
    samples: Path,
    site_map: SiteMap,
    readings: Sequence[Reading],
    fitted: Statistics,
    options: QuantizeOptions,
    *,
    part: slice,
    batch_size: int,
    progress: Progress,
) -> dict[str, dict[Way, float]]:
    """Squared error of the products of each reading by candidate, over a part of the samples.

    Scales, centres and grids are those of `fitted`; grids span all that was seen there.
    """
    found: dict[str, dict[Way, float]] = {
        r.key: dict.fromkeys(ways_for(r, options), 0.0) for r in readings
    }
    last = max(site_map.graphs.index(r.sites[0].graph) for r in readings)
    tensors: dict[str, list[tuple[str, str, Way]]] = {}

    def instrument(graph_name: str, graph: ir.Graph) -> None:
        here = [r for r in readings if r.sites[0].graph == graph_name]
        for k, reading in enumerate(here):
            trials = fit_ways(graph, reading, fitted, options)
            for n, (way, trial) in enumerate(trials.items()):
                for m, site in enumerate(reading.sites):
                    label = f"trial.{graph_name}.{k}.{n}.{m}"
                    observe_trial(graph, site, reading, trial, fitted, options, label)
                    named = tensors.setdefault(graph_name, [])
                    named.append((f"{label}:noise", reading.key, way))

    def consume(graph_name: str, outputs: Outputs) -> None:
        for tensor, key, way in tensors.get(graph_name, ()):
            found[key][way] += float(outputs[tensor].astype(np.float64).sum())

    run_instrumented(
        export,
        samples,
        site_map.graphs[: last + 1],
        batch_size=batch_size,
        instrument=instrument,
        consume=consume,
        progress=progress,
        part=part,
    )
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """A fitted candidate and the grid that its values are rounded to."""

    scaling: Scaling
    activation: ActivationFormat


def fit_ways(
    graph: ir.Graph, reading: Reading, fitted: Statistics, options: QuantizeOptions
) -> dict[Way, Trial]:
    stats, users = reading.seen(fitted), summarize(graph, reading.sites)
    found = {}
    for way in ways_for(reading, options):
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
        found[way] = Trial(scaling, chosen)
    return found


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
    node, scaling = site_node(graph, site), trial.scaling
    weight = scaled_weight(graph, site, reading.entry, scaling)
    codes = nearest(weight, site, reading.entry, fitted, options, scaling)
    scale, center = input_scaling(reading.entry, scaling)
    chosen = SiteWeights(
        codes,
        activation=trial.activation,
        smoothing=scale,
        center=center,
        center_output=None if center is None else offset_output(weight, center),
    )
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
