"""Quantize a model by its plan, in six steps: plan, groups, scales, fold, rounding, Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import onnx_ir as ir

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import SmoothedInput
from ..calibrate.statistics import Statistics
from ..graph.edit import forget_constants
from ..graph.io import load_graph
from ..graph.linears import site_node
from ..graph.sites import NO_WEIGHT, Site, SiteMap
from ..numerics.noise import rounding_noise_db
from ..numerics.parts import Weight
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat, Plan, SitePlan
from ..numerics.weight import QuantizedWeight
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from .facts import SiteRow
from .fold_check import REFUSED, AppliedFold, failing_folds, on_samples
from .groups import InputDecision, InputGroup, find_groups, site_statistics
from .per_tensor import PredictedError
from .per_token import HeldOutError
from .plan import require_blocks
from .rounding import Rounded, RoundingTask, round_sites
from .separate_graphs import SeparateGraphs
from .shared_graphs import SharedGraphs

CHECKED = 1  # samples that folds are tried on


class InputCalibrator(Protocol):
    """Chooses the scales of channels and the QParams of every group."""

    def decide(
        self,
        graphs: Mapping[str, ir.Graph],
        groups: Sequence[InputGroup],
        entries: Mapping[str, SitePlan],
    ) -> tuple[dict[str, SitePlan], dict[str, InputDecision]]:
        """Return the plan with what a search has found, and decisions by each group's key."""


class QuantizedGraphs(Protocol):
    """Puts scales and quantized weights into the graphs of a model, and writes its files."""

    entries: Mapping[str, SitePlan]
    decisions: dict[str, InputDecision]

    def fold_of(self, group: InputGroup) -> AppliedFold | None:
        """Return what goes into the constants in front of a group, None for nothing."""

    def fold(self) -> None:
        """Put scales and shifts into what makes the inputs, while all weights are floats."""

    def rounding_input(self, site: Site) -> tuple[SmoothedInput, QParams | None]:
        """Return what the product of a site is fed, and how that is rounded."""

    def weight(self, site: Site) -> Weight:
        """Return the weight [O, I, ...] that meets a site's scaled input."""

    def nearest(self, weight: Weight, site: Site) -> QuantizedWeight:
        """Return a site's weight rounded to nearest."""

    def filled(self, site: Site) -> ActivationFormat | None:
        """Return the plan's entry of a site's input with its scale in it."""

    def write(
        self, output: Path, weights: Mapping[str, QuantizedWeight], rounded: Mapping[str, Rounded]
    ) -> None:
        """Write the Q/DQ graphs and weights.safetensors into a folder."""


def quantize_model(
    run: CalibrationRun,
    output: Path,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    shared: bool,
    max_memory: int = MAX_MEMORY,
    apart: Path | None = None,
) -> tuple[Plan, list[SiteRow]]:
    """Write the Q/DQ graphs and weights.safetensors into `output`.

    `shared` says that graphs share their weights, as a generator's do: then inputs have scales per
    token, and every graph of the run's folder is written; graphs that are quantized already, in
    the folder `apart`, take the place of the run's. `entries` plans the sites of the map's
    calibrated graphs. Returns the plan with every scale filled in, and what became of each site.
    Hessians stay below `max_memory` bytes.

    Raises:
        RecipeError: sites that share an input but not the plan for it, or that cannot take blocks.
        CalibrationError: statistics of another model, a sample that gives NaN.
    """
    # Plan
    models = {name: load_graph(run.export / f"{name}.onnx") for name in site_map.graphs}
    graphs = {name: model.graph for name, model in models.items()}
    for name, graph in graphs.items():
        require_blocks(graph, site_map.of_graph(name), entries)
    # Groups
    groups = [
        group
        for name, graph in graphs.items()
        for group in find_groups(graph, site_map.of_graph(name), entries, statistics)
    ]
    # Scales
    calibrator: InputCalibrator = (
        HeldOutError(run, options, max_memory)
        if shared
        else PredictedError(run, site_map, statistics, options, max_memory)
    )
    entries, decisions = calibrator.decide(graphs, groups, entries)
    # Fold
    quantized: QuantizedGraphs = (
        SharedGraphs(run.export, models, site_map, entries, groups, decisions, options, apart)
        if shared
        else SeparateGraphs(models, site_map, entries, groups, decisions, statistics, options)
    )
    refuse_folds(run, groups, quantized)
    quantized.fold()
    # Rounding
    planned = [site for name in site_map.graphs for site in site_map.of_graph(name)]
    rounded = round_sites(
        run,
        rounding_tasks(graphs, planned, quantized, statistics, correct=options.bias_correction),
        correct=options.bias_correction,
        max_memory=max_memory,
    )
    weights, plan, results = round_weights(run, planned, groups, quantized, rounded)
    # Q/DQ
    quantized.write(output, weights, rounded)
    for graph in graphs.values():
        forget_constants(graph)
    return plan, results


def refuse_folds(
    run: CalibrationRun, groups: Sequence[InputGroup], quantized: QuantizedGraphs
) -> None:
    """Give scales a node of their own where a fold does not hold on a sample, and say why."""
    found = [quantized.fold_of(group) for group in groups]
    folds = [fold for fold in found if fold is not None]
    entries = dict(quantized.entries)
    for key, error in failing_folds(run.export, on_samples(run, CHECKED), folds).items():
        quantized.decisions[key] = quantized.decisions[key].without_fold()
        for site in next(fold.sites for fold in folds if fold.key == key):
            entries[site.name] = msgspec.structs.replace(
                entries[site.name], reason=REFUSED.format(error)
            )
    quantized.entries = entries


def rounding_tasks(
    graphs: Mapping[str, ir.Graph],
    sites: Sequence[Site],
    quantized: QuantizedGraphs,
    statistics: Statistics,
    *,
    correct: bool,
) -> list[RoundingTask]:
    """Return the weights of the folded graphs that data rounds, and what they are fed."""
    tasks = []
    for site in sites:
        entry = quantized.entries[site.name]
        if RoundingTask.needed(entry, correct=correct):
            smoothed, qparams = quantized.rounding_input(site)
            tasks.append(
                RoundingTask(
                    site,
                    entry,
                    site_node(graphs[site.graph], site),
                    smoothed,
                    qparams,
                    int(site_statistics(statistics, site.name).count),
                    partial(quantized.weight, site),
                    partial(quantized.nearest, site=site),
                )
            )
    return tasks


def round_weights(
    run: CalibrationRun,
    sites: Sequence[Site],
    groups: Sequence[InputGroup],
    quantized: QuantizedGraphs,
    rounded: Mapping[str, Rounded],
) -> tuple[dict[str, QuantizedWeight], Plan, list[SiteRow]]:
    """Return the quantized weights by site, the plan with its scales, and what reports say.

    Those in `rounded` are had already; the others are rounded to nearest.
    """
    decided = {
        site.name: quantized.decisions[group.key] for group in groups for site in group.sites
    }
    weights: dict[str, QuantizedWeight] = {}
    final, results = [], []
    for k, site in enumerate(sites):
        entry, noise = quantized.entries[site.name], None
        if entry.weight is not None:
            weight = quantized.weight(site)
            known = rounded.get(site.name)
            weights[site.name] = known.weight if known else quantized.nearest(weight, site)
            noise = rounding_noise_db(weight, weights[site.name].dequantize_rows)
        sqnr_db = None
        if site.name in decided:
            entry = msgspec.structs.replace(entry, activation=quantized.filled(site))
            sqnr_db = decided[site.name].sqnr_db
        final.append(entry)
        results.append(site_row(site, entry, noise, sqnr_db))
        run.progress("weights", k + 1, len(sites))
    return weights, Plan(sites=tuple(final)), results


def site_row(
    site: Site, entry: SitePlan, weight_db: float | None, activation_db: float | None
) -> SiteRow:
    """Return what reports say of a site with this plan."""
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
        shift = ", channels shifted" if entry.activation.centered else shift
        activation = f"{kind} {entry.activation.granularity.replace('_', '-')}{shift}"
    return SiteRow(
        name=site.name,
        graph=site.graph,
        weight=weight,
        activation=activation,
        weight_sqnr_db=weight_db,
        activation_sqnr_db=activation_db,
        reason=entry.reason,
    )
