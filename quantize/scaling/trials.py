"""Measures what candidate scalings lose, by quantized copies of products and of whole graphs.

In a copy of a graph each product stands beside its quantized forms, which read the same input in
FP32, and what they are off is summed. Or all products are replaced, and the outputs are compared
with FP32's. Weights that data rounds are those which `round_trials` gives, of the samples that a
candidate is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.reduce import Reducer, finite
from ...calibrate.observers.run import Outputs
from ...calibrate.observers.smoothed import Scaling
from ...calibrate.statistics import Statistics
from ...errors import CalibrationError
from ...graph.linears import LINEAR_OPS, site_node
from ...graph.sites import Site
from ...numerics.scheme import ActivationFormat
from ...numerics.weight import QuantizedWeight
from ...recipe.quantize import QuantizeOptions
from ..groups import InputGroup, summarize
from ..qdq.convolution import insert_qdq, rewrite_convolution
from ..qdq.linear import rewrite_linear
from ..qdq.nodes import SiteWeights, offset_output
from ..rounding import Rounded, correct_bias, correct_biases
from ..separate_graphs import input_scaling, round_to_nearest, scaled_weight
from ..tensor_qparams import clip_candidates, fp8_qparams
from .distances import EVERYTHING, Off, distance
from .predicted import Way, way_of

Array = NDArray[np.generic]
TrialWeights = dict[tuple[str, Way], Rounded]  # by site and candidate


@dataclass(frozen=True, slots=True)
class Fold:
    """Hold statistics of the samples in `part`, and which others judge what is fitted to them.

    `scalings` has those of ways by GPS, by group and way, and is filled with the others as they are
    fitted. `rounded` is filled with weights that data rounded for single products, and that are
    wanted again for whole graphs; `unscaled` by site with those rounded to nearest as they are,
    which are the same for all folds.
    """

    fitted: Statistics
    part: slice
    judged: slice
    scalings: dict[tuple[str, Way], Scaling] = field(default_factory=dict)
    rounded: TrialWeights = field(default_factory=dict)
    unscaled: dict[str, QuantizedWeight] = field(default_factory=dict)


def run_whole(
    run: CalibrationRun, graph: str, fold: Fold, change: Callable[[ir.Graph], None]
) -> dict[str, list[Array]]:
    """Return the outputs of a changed graph by name, of the judged samples one by one, in order."""
    found: dict[str, list[Array]] = {}
    names: list[str] = []

    def instrument(_: str, found_graph: ir.Graph) -> None:
        names.extend(str(value.name) for value in found_graph.outputs)
        change(found_graph)

    def consume(_: str, outputs: Outputs) -> None:
        for output in names:
            found.setdefault(output, []).append(outputs[output])

    one_by_one = replace(run.of(fold.judged), batch_size=1)
    one_by_one.inside(graph).observe(instrument, consume)
    return found


def trial_distance(
    run: CalibrationRun,
    graph: str,
    fold: Fold,
    trial: Callable[[ir.Graph], None],
    exact: Mapping[str, list[Array]],
) -> Off:
    """Return the distance of a quantized graph's outputs from FP32's.

    It is infinite where the quantized graph makes NaN or infinity of what was finite in FP32.
    """
    try:
        return distance(run_whole(run, graph, fold, trial), exact)
    except CalibrationError:
        return EVERYTHING


def judged_errors(
    run: CalibrationRun,
    groups: Sequence[InputGroup],
    fold: Fold,
    ways: Mapping[str, Sequence[Way]],
    rounded: TrialWeights,
    options: QuantizeOptions,
) -> dict[str, dict[Way, float]]:
    """Return the squared error of each group's products by candidate, over the judged samples.

    `ways` are the candidates of each group, `rounded` has their weights that data rounds; others
    are rounded to nearest. Scales and centres are fitted to the other samples, and the QParams span
    all values of those.
    """
    found: dict[str, dict[Way, float]] = {g.key: dict.fromkeys(ways[g.key], 0.0) for g in groups}
    tensors: dict[str, list[tuple[str, str, Way]]] = {}

    def instrument(graph_name: str, graph: ir.Graph) -> None:
        inside = [group for group in groups if group.graph == graph_name]
        for k, group in enumerate(inside):
            tried = ways[group.key]
            trials = fit_ways(graph, group, tried, fold, options)
            for n, (way, trial) in enumerate(zip(tried, trials, strict=True)):
                for m, site in enumerate(group.sites):
                    label = f"trial.{graph_name}.{k}.{n}.{m}"
                    known = rounded.get((site.name, way))
                    observe_trial(graph, site, group, trial, known, fold, options, label)
                    named = tensors.setdefault(graph_name, [])
                    named.append((f"{label}:noise", group.key, way))

    def consume(graph_name: str, outputs: Outputs) -> None:
        for tensor, key, way in tensors.get(graph_name, ()):
            found[key][way] += float(outputs[tensor].astype(np.float64).sum())

    names = sorted({group.graph for group in groups})
    run.of(fold.judged).inside(*names).observe(instrument, consume)
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """Hold a fitted candidate and the format that its values are rounded to."""

    scaling: Scaling
    activation: ActivationFormat


def fit_ways(
    graph: ir.Graph,
    group: InputGroup,
    ways: Sequence[Way],
    fold: Fold,
    options: QuantizeOptions,
) -> list[Trial]:
    """Fit every way to the statistics of a group's input; clips are at the observed range."""
    stats, activation = group.seen(fold.fitted), group.activation
    missing = [way for way in ways if (group.key, way) not in fold.scalings]
    if missing:
        readers = summarize(graph, group.sites)
        for way in missing:
            fold.scalings[group.key, way] = way.fit(stats, readers, group.bits)
    found = []
    for way in ways:
        scaling = fold.scalings[group.key, way]
        if activation.grid == "fp8":
            qparams = fp8_qparams(stats, scaling)
        else:
            (qparams,) = clip_candidates(
                stats, scaling, activation.bits, allow_shift=options.shift, fractions=(1.0,)
            )
        found.append(Trial(scaling, qparams.as_format(centered=scaling.center is not None)))
    return found


def quantize_whole(
    graph: ir.Graph,
    *,
    groups: Sequence[InputGroup],
    ways: Mapping[str, Way],
    rounded: TrialWeights,
    fold: Fold,
    options: QuantizeOptions,
) -> None:
    """Quantize all products with rounded inputs; their scales are nodes of their own."""
    weights, sites, by_data = {}, [], {}
    for group in groups:
        way = way_of(group, ways)
        (trial,) = fit_ways(graph, group, [way], fold, options)
        for site in group.sites:
            known = rounded.get((site.name, way))
            if known is not None:
                by_data[site.name] = known
            weights[site.name] = trial_weights(graph, site, group, trial, known, fold, options)
            sites.append(msgspec.structs.replace(site, fold=None, producer_fold=None))
    correct_biases(graph, sites, by_data)
    insert_qdq(graph, sites, weights)


def trial_weights(
    graph: ir.Graph,
    site: Site,
    group: InputGroup,
    trial: Trial,
    known: Rounded | None,
    fold: Fold,
    options: QuantizeOptions,
) -> SiteWeights:
    """Return what a product computes with in a trial; `known` is its weight if data rounded it."""
    entry = group.entries[site.name]
    weight = scaled_weight(graph, site, entry, trial.scaling)
    scale, center = input_scaling(entry, trial.scaling)
    if known is not None:
        quantized = known.weight
    elif options.data_aware or (scale is not None and np.any(scale != 1)):
        quantized = round_to_nearest(weight, site, entry, fold.fitted, options, trial.scaling)
    else:
        if site.name not in fold.unscaled:
            fold.unscaled[site.name] = round_to_nearest(
                weight, site, entry, fold.fitted, options, None
            )
        quantized = fold.unscaled[site.name]
    return SiteWeights(
        quantized,
        activation=trial.activation,
        smoothing=scale,
        center=center,
        center_output=None if center is None else offset_output(weight, center),
    )


def observe_trial(
    graph: ir.Graph,
    site: Site,
    group: InputGroup,
    trial: Trial,
    known: Rounded | None,
    fold: Fold,
    options: QuantizeOptions,
    label: str,
) -> None:
    """Add the output `LABEL:noise` [N, O]: sums of squares of the quantized product's error."""
    node = site_node(graph, site)
    chosen = trial_weights(graph, site, group, trial, known, fold, options)
    again = ir.node(node.op_type, node.inputs, dict(node.attributes), name=label)
    value = again.outputs[0]
    value.name, value.type, value.shape = label, ir.TensorType(ir.DataType.FLOAT), None
    graph.insert_after(node, again)
    own = msgspec.structs.replace(
        site, name=label, node=label, output=label, fold=None, producer_fold=None
    )
    if known is not None and known.bias_shift is not None:
        correct_bias(graph, own, known.bias_shift)
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
    seen = finite(graph, made)
    Reducer(graph, seen, site.channel_axis).add(
        f"{label}:noise", seen, "ReduceSumSquare", "ReduceSum"
    )
