"""Plan + statistics -> the Q/DQ graphs of a generator, whose weights several graphs share.

Everything is decided in the graphs that are calibrated: of most families the one of all positions.
Each other graph with sites of the same names then gets the same scales, weights and grids; the rest
is written as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.run import Progress
from ..calibrate.observers.smoothed import plain_input
from ..calibrate.statistics import Statistics
from ..graph.edit import drop_unused_initializers
from ..graph.io import load_graph
from ..graph.linears import site_node, site_weight
from ..graph.sites import Site, SiteMap
from ..graph.weight_file import SharedWeights
from ..numerics.noise import rounding_noise_db
from ..numerics.packing import save_packed
from ..numerics.scheme import Plan, SitePlan
from ..numerics.weight import QuantizedWeight, quantize_weight
from ..recipe.options import MAX_MEMORY, QuantizeOptions
from .fold import absorb
from .fold_check import REFUSED, AppliedFold, failing_folds, on_samples
from .groups import TokenGroup, token_groups
from .plan import require_blocks
from .qdq.linear import rewrite_linear
from .qdq.nodes import SiteWeights
from .qdq.per_token import TokenSite, rewrite_token_linear
from .ranges import site_statistics
from .rounding import Rounded, Task, correct_biases, round_sites
from .run import CHECKED, SiteResult, describe, float_parameters
from .token_decisions import Decision, decide_groups


def quantize_generator(
    run: CalibrationRun,
    output: Path,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    *,
    max_memory: int = MAX_MEMORY,
) -> tuple[Plan, list[SiteResult]]:
    """Write every graph of the run's folder, Q/DQ where a site is planned, and their weights.

    `entries` plans the sites of the map's calibrated graphs. Returns the plan with every scale
    filled in, and what became of each site. Second moments stay below `max_memory` bytes.

    Raises:
        RecipeError: sites that share an input but not the plan for it, or that cannot take blocks.
        CalibrationError: statistics of another model, a sample that gives NaN.
    """
    export = run.export
    models = {graph: load_graph(export / f"{graph}.onnx") for graph in site_map.graphs}
    for graph, model in models.items():
        require_blocks(model.graph, site_map.of_graph(graph), entries)
    groups: list[TokenGroup] = []
    decisions: dict[str, Decision] = {}
    for graph, model in models.items():
        found = token_groups(model.graph, site_map.of_graph(graph), entries, statistics)
        decisions |= decide_groups(model.graph, found, run.on(graph), options)
        groups += found
    refused = refuse_folds(run, groups, decisions)
    entries = {
        name: msgspec.structs.replace(entry, reason=refused.get(name, entry.reason))
        for name, entry in entries.items()
    }
    absorptions = [(group.sites, decisions[group.key].absorption) for group in groups]
    tasks: list[Task] = []
    for graph, model in models.items():
        sites = site_map.of_graph(graph)
        absorb(model.graph, sites, absorptions)
        tasks += rounding_tasks(model.graph, sites, groups, entries, decisions, statistics, options)
    rounded = round_sites(run, tasks, correct=options.bias_correction, max_memory=max_memory)
    chosen: dict[str, TokenSite | QuantizedWeight] = {}
    floats: dict[str, NDArray[np.generic]] = {}
    results: list[SiteResult] = []
    final: list[SitePlan] = []
    for graph, model in models.items():
        sites = site_map.of_graph(graph)
        made = quantize_sites(
            model.graph, sites, groups, entries, decisions, options, rounded, run.progress
        )
        chosen |= made[0]
        results += made[1]
        final += made[2]
        correct_biases(model.graph, sites, rounded)
        floats |= float_parameters(model.graph, [s for s in sites if s.name in chosen])
    for group in groups:
        floats |= kept_tables(group, decisions[group.key])
    packed = {name: site_codes(found) for name, found in chosen.items()}
    save_packed(packed, floats, output / "weights.safetensors")
    shared = {site.graph for site in site_map.sites if site.name in chosen}
    with SharedWeights(output) as weights:
        for path in sorted(export.glob("*.onnx")):
            graph = path.stem
            changed = models[graph] if graph in models else load_graph(path)
            if graph in shared:
                own = site_map.of_graph(graph)
                if graph not in models:
                    absorb(changed.graph, own, absorptions)
                    correct_biases(changed.graph, own, rounded)
                insert_sites(changed.graph, own, chosen)
            weights.write(changed, graph)
    return Plan(sites=tuple(final)), results


def refuse_folds(
    run: CalibrationRun, groups: Sequence[TokenGroup], decisions: dict[str, Decision]
) -> dict[str, str]:
    """Take folds that do not hold on a sample out of `decisions`; by site, why it has none."""
    folds = []
    for group in groups:
        absorbed = decisions[group.key].absorption
        if not absorbed.divides or not (np.any(absorbed.scale != 1) or np.any(absorbed.shift)):
            continue
        shift = absorbed.shift if absorbed.subtracts else np.zeros_like(absorbed.scale)
        folds.append(
            AppliedFold(group.sites, absorbed.scale.astype(np.float32), shift.astype(np.float32))
        )
    reasons: dict[str, str] = {}
    for key, error in failing_folds(run.export, on_samples(run, CHECKED), folds).items():
        own = replace(decisions[key].absorption, divides=False, subtracts=False)
        decisions[key] = replace(decisions[key], absorption=own)
        sites = next(group.sites for group in groups if group.key == key)
        reasons |= {site.name: REFUSED.format(error) for site in sites}
    return reasons


def quantize_sites(
    graph: ir.Graph,
    sites: Sequence[Site],
    groups: Sequence[TokenGroup],
    entries: Mapping[str, SitePlan],
    decisions: Mapping[str, Decision],
    options: QuantizeOptions,
    rounded: Mapping[str, Rounded],
    progress: Progress,
) -> tuple[dict[str, TokenSite | QuantizedWeight], list[SiteResult], list[SitePlan]]:
    """The codes of every planned weight of the absorbed graph, and what reports say of each.

    Those in `rounded` are had already; the others are rounded to nearest.
    """
    decided = {site.name: decisions[group.key] for group in groups for site in group.sites}
    chosen: dict[str, TokenSite | QuantizedWeight] = {}
    results, final = [], []
    for k, site in enumerate(sites):
        entry = entries[site.name]
        decision = decided.get(site.name)
        noise = None
        if entry.weight is not None:
            weight = site_weight(graph, site)
            known = rounded.get(site.name)
            codes = known.weight if known else nearest(weight, entry, decision, options)
            noise = rounding_noise_db(weight, codes.dequantize())
            chosen[site.name] = codes if decision is None else TokenSite(codes, decision.qparams)
        if decision is not None:
            assert entry.activation is not None
            filled = decision.qparams.fill(entry.activation)
            entry = msgspec.structs.replace(entry, activation=filled)
        final.append(entry)
        results.append(describe(site, entry, noise, decision.sqnr_db if decision else None))
        progress("weights", k + 1, len(sites))
    return chosen, results, final


def nearest(
    weight: NDArray[np.float32],
    entry: SitePlan,
    decision: Decision | None,
    options: QuantizeOptions,
) -> QuantizedWeight:
    assert entry.weight is not None
    importance = None
    if options.data_aware and decision and entry.weight.granularity == "per_channel":
        importance = decision.energy
    return quantize_weight(weight, entry.weight, importance)


def rounding_tasks(
    graph: ir.Graph,
    sites: Sequence[Site],
    groups: Sequence[TokenGroup],
    entries: Mapping[str, SitePlan],
    decisions: Mapping[str, Decision],
    statistics: Statistics,
    options: QuantizeOptions,
) -> list[Task]:
    """The weights of the absorbed graph that data rounds, and what their products are fed."""
    group_of = {site.name: group for group in groups for site in group.sites}
    tasks = []
    for site in sites:
        entry = entries[site.name]
        if not Task.needed(entry, correct=options.bias_correction):
            continue
        group = group_of.get(site.name)
        decision = decisions[group.key] if group else None
        view, grid = plain_input(site), None
        if group and decision:
            absorbed = decision.absorption
            shift = absorbed.shift if np.any(absorbed.shift) else None
            view = replace(group.view, scale=absorbed.scale, shift=shift)
            grid = decision.qparams.deployed()
        tasks.append(
            Task(
                site,
                entry,
                site_node(graph, site),
                view,
                grid,
                int(site_statistics(statistics, site.name).count),
                partial(site_weight, graph, site),
                partial(nearest, entry=entry, decision=decision, options=options),
            )
        )
    return tasks


def kept_tables(group: TokenGroup, decision: Decision) -> dict[str, NDArray[np.generic]]:
    """What weights.safetensors holds of a group beside the codes, by the name of each site."""
    absorbed = decision.absorption
    tables: dict[str, NDArray[np.generic]] = {"smoothing": absorbed.scale.astype(np.float32)}
    if np.any(absorbed.shift):
        tables["center"] = absorbed.shift.astype(np.float32)
    tables |= decision.qparams.token_tables()
    return {f"{s.name}.{name}": values for s in group.sites for name, values in tables.items()}


def site_codes(found: TokenSite | QuantizedWeight) -> QuantizedWeight:
    return found.weight if isinstance(found, TokenSite) else found


def insert_sites(
    graph: ir.Graph, sites: Sequence[Site], chosen: Mapping[str, TokenSite | QuantizedWeight]
) -> None:
    """Rewrite the sites that `chosen` names, by the form that each needs."""
    for site in sites:
        found = chosen.get(site.name)
        if isinstance(found, TokenSite):
            rewrite_token_linear(graph, site_node(graph, site), site, found)
        elif found is not None:
            rewrite_linear(graph, site_node(graph, site), site, SiteWeights(found))
    drop_unused_initializers(graph)
