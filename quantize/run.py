"""Plan + statistics -> Q/DQ graphs and packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import Scaling
from ..calibrate.statistics import Statistics
from ..errors import RecipeError
from ..graph.builder import constant_array
from ..graph.io import load_graph
from ..graph.linears import site_weight
from ..graph.sites import CONSTANT_ROLES, NO_WEIGHT, Site, SiteMap
from ..numerics.noise import rounding_noise_db
from ..numerics.packing import save_packed
from ..numerics.scheme import ActivationFormat, Plan, SitePlan
from ..numerics.weight import QuantizedWeight
from ..recipe.options import MAX_MEMORY, QuantizeOptions
from .fold_check import REFUSED, AppliedFold, failing_folds, on_samples
from .held_out import search_ways
from .plan import require_blocks
from .predicted import Way
from .qdq.convolution import insert_qdq
from .qdq.nodes import SiteWeights, offset_output
from .ranges import Group, group_sites, search_activations
from .rounding import Rounded, correct_biases, round_sites
from .scaled_weights import input_scaling, nearest, rounding_tasks, scaled_weight
from .trials import Samples

FP16_MAX = 65504.0
CHECKED = 1  # samples that folds are tried on
LARGE = 1024  # bytes, from which graphs keep a constant in their weight file


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of a site: signal-to-noise ratios in dB of its weight and of its input."""

    name: str
    graph: str
    weight: str
    activation: str
    weight_sqnr_db: float | None
    activation_sqnr_db: float | None
    reason: str | None


def quantize_graphs(
    run: CalibrationRun,
    output: Path,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> tuple[Plan, list[SiteResult]]:
    """Write the Q/DQ graphs and weights.safetensors into `output`.

    Returns the plan with every scale filled in, and what became of each site. Second moments stay
    below `max_memory` bytes.
    """
    export = run.export
    for graph in site_map.graphs:
        own = load_graph(export / f"{graph}.onnx").graph
        require_blocks(own, site_map.of_graph(graph), entries)
    source = Samples(export, run.samples, site_map, run.batch_size, run.progress)
    ways = search_ways(source, entries, statistics, options)
    groups = {
        graph: group_sites(export, site_map, graph, entries, statistics, ways)
        for graph in site_map.graphs
    }
    entries = decided(entries, groups, ways)
    activations, quality = search_activations(run, groups, entries, options)
    groups, refused = refuse_folds(run, groups, entries, activations)
    scaling = {s.name: g.scaling for found in groups.values() for g in found for s in g.sites}
    models = {graph: load_graph(export / f"{graph}.onnx") for graph in site_map.graphs}
    for graph, model in models.items():
        fold_groups(model.graph, groups[graph], entries, activations)
    rounded = round_sites(
        run,
        rounding_tasks(models, site_map, entries, statistics, options, activations, scaling),
        correct=options.bias_correction,
        max_memory=max_memory,
    )
    results: list[SiteResult] = []
    packed: dict[str, QuantizedWeight] = {}
    floats: dict[str, NDArray[np.generic]] = {}
    final: list[SitePlan] = []
    for graph, model in models.items():
        sites = site_map.of_graph(graph)
        chosen: dict[str, SiteWeights] = {}
        folded = {s.name for g in groups[graph] for s in g.sites if g.fold}
        for position, site in enumerate(sites):
            entry = entries[site.name]
            site_weights, noise = quantize_site(
                model.graph,
                site,
                entry,
                statistics,
                options,
                activations.get(site.name),
                scaling.get(site.name),
                rounded.get(site.name),
            )
            if site_weights is not None:
                chosen[site.name] = site_weights
                store(site, site_weights, packed, floats)
            final.append(
                msgspec.structs.replace(
                    entry,
                    activation=activations.get(site.name),
                    reason=refused.get(site.name, entry.reason),
                )
            )
            results.append(describe(site, final[-1], noise, quality.get(site.name)))
            run.progress(f"{graph} weights", position + 1, len(sites))
        correct_biases(model.graph, sites, rounded)
        for key, value in float_parameters(model.graph, sites).items():
            known = floats.get(key)
            same = known is None or np.array_equal(known, value)
            floats[key if same else f"{graph}.{key}"] = value
        kept = [s if s.name in folded else without_fold(s) for s in sites]
        insert_qdq(model.graph, kept, chosen)
        ir.save(
            model,
            output / f"{graph}.onnx",
            external_data=f"{graph}.onnx.data",
            size_threshold_bytes=1024,
        )
    save_packed(packed, floats, output / "weights.safetensors")
    return Plan(sites=tuple(final)), results


def decided(
    entries: Mapping[str, SitePlan],
    groups: Mapping[str, Sequence[Group]],
    ways: Mapping[str, Way],
) -> dict[str, SitePlan]:
    """The plan with what a search has found, so that it gives the same scales again."""
    found = dict(entries)
    for members in groups.values():
        for group in members:
            way = ways.get(group.sites[0].name)
            for site in group.sites if way else ():
                assert way is not None
                found[site.name] = msgspec.structs.replace(found[site.name], smoothing=way.scales)
    return found


def fold_of(
    group: Group, entries: Mapping[str, SitePlan], activations: Mapping[str, ActivationFormat]
) -> AppliedFold | None:
    """Return what goes into the constants in front of a group, None for nothing."""
    first = group.sites[0]
    if not group.fold:
        return None
    smoothing = group.scaling.smoothing.astype(np.float32)
    if entries[first.name].smoothing is None:
        smoothing = np.ones_like(smoothing)
    offset = group.offset(activations[first.name])
    if np.all(smoothing == 1) and not offset.any():
        return None
    return AppliedFold(group.sites, smoothing, offset)


def refuse_folds(
    run: CalibrationRun,
    groups: Mapping[str, Sequence[Group]],
    entries: Mapping[str, SitePlan],
    activations: Mapping[str, ActivationFormat],
) -> tuple[dict[str, list[Group]], dict[str, str]]:
    """The groups, without folds that do not hold on a sample, and why those have none, by site."""
    found = [fold_of(g, entries, activations) for members in groups.values() for g in members]
    folds = [fold for fold in found if fold is not None]
    failing = failing_folds(run.export, on_samples(run, CHECKED), folds)
    kept = {
        graph: [replace(g, fold=g.fold and g.sites[0].name not in failing) for g in members]
        for graph, members in groups.items()
    }
    reasons = {
        site.name: REFUSED.format(failing[fold.key])
        for fold in folds
        if fold.key in failing
        for site in fold.sites
    }
    return kept, reasons


def fold_groups(
    graph: ir.Graph,
    groups: Sequence[Group],
    entries: Mapping[str, SitePlan],
    activations: Mapping[str, ActivationFormat],
) -> None:
    """Put scales and offsets into producers while all weights are still floats."""
    for group in groups:
        fold = fold_of(group, entries, activations)
        if fold is not None and group.sites[0].producer_fold is not None:
            fold.apply(graph)


def without_fold(site: Site) -> Site:
    return msgspec.structs.replace(site, fold=None, producer_fold=None)


def quantize_site(
    graph: ir.Graph,
    site: Site,
    entry: SitePlan,
    statistics: Statistics,
    options: QuantizeOptions,
    activation: ActivationFormat | None,
    scaling: Scaling | None,
    rounded: Rounded | None,
) -> tuple[SiteWeights | None, float | None]:
    """The weights of one site and the SQNR of the quantized weight in dB."""
    if site.weight is None or site.role in CONSTANT_ROLES:
        return None, None
    if entry.weight is None:
        return SiteWeights(
            quantized=None, floating=to_half(site_weight(graph, site), site.name)
        ), None
    weight = scaled_weight(graph, site, entry, scaling)
    if rounded is None:
        quantized = nearest(weight, site, entry, statistics, options, scaling)
    else:
        quantized = rounded.weight
    scale, center = input_scaling(entry, scaling)
    noise = rounding_noise_db(weight, quantized.dequantize())
    weights = SiteWeights(
        quantized,
        activation=activation,
        smoothing=scale,
        center=center,
        center_output=None if center is None else offset_output(weight, center),
    )
    return weights, noise


def to_half(weight: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Round to float16, which is how high-precision weights are stored and built."""
    worst = float(np.abs(weight).max())
    if not worst <= FP16_MAX:
        raise RecipeError(
            f"{name} has a weight of {worst:.3g}, beyond float16",
            do="give it a weight format in the plan",
        )
    return weight.astype(np.float16).astype(np.float32)


def store(
    site: Site,
    weights: SiteWeights,
    packed: dict[str, QuantizedWeight],
    floats: dict[str, NDArray[np.generic]],
) -> None:
    if weights.quantized is not None:
        packed[site.name] = weights.quantized
    if weights.floating is not None:
        floats[f"{site.name}.weight"] = weights.floating.astype(np.float16)
    if weights.smoothing is not None:
        floats[f"{site.name}.smoothing"] = weights.smoothing
    if weights.center is not None:
        floats[f"{site.name}.center"] = weights.center


def float_parameters(graph: ir.Graph, sites: Sequence[Site]) -> dict[str, NDArray[np.generic]]:
    """Biases, norms, embeddings: what is called a parameter, or large; a site's weight is not."""
    weights = {site.weight for site in sites}
    weights |= {f"{site.name}.bias" for site in sites if site.role in CONSTANT_ROLES}
    found: dict[str, NDArray[np.generic]] = {}
    for name, value in graph.initializers.items():
        if name in weights or value.dtype != ir.DataType.FLOAT:
            continue
        array = constant_array(value)
        if name.rpartition(".")[2] in ("weight", "bias") or array.nbytes >= LARGE:
            found[name] = array
    return found


def describe(
    site: Site, entry: SitePlan, weight_db: float | None, activation_db: float | None
) -> SiteResult:
    weight = "float16" if site.weight is not None else NO_WEIGHT
    if entry.weight is not None:
        kind = {"uniform": "INT", "fp8": "FP"}.get(entry.weight.grid, entry.weight.grid.upper())
        size = f" of {entry.weight.block}" if entry.weight.block else ""
        kind = f"{kind}-" if kind == "LOG2" else kind
        weight = f"{kind}{entry.weight.bits} {entry.weight.granularity.replace('_', '-')}{size}"
    activation = "float"
    if entry.activation is not None:
        kind = "FP8" if entry.activation.grid == "fp8" else f"INT{entry.activation.bits}"
        shift = ", shifted" if entry.activation.shift else ""
        shift = ", centered" if entry.activation.centered else shift
        activation = f"{kind} {entry.activation.granularity.replace('_', '-')}{shift}"
    return SiteResult(
        site.name, site.graph, weight, activation, weight_db, activation_db, entry.reason
    )
