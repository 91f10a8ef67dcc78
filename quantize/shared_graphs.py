"""Q/DQ graphs of a generator, whose weights several graphs share.

Everything is decided in the graphs that are calibrated: of most families the one of all positions.
Scales are folded into their weights before any is rounded. Each other graph with sites of the same
names then gets the same scales, weights and QParams; the rest is written as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.smoothed import SmoothedInput, plain_input
from ..graph.io import load_graph
from ..graph.linears import site_node, site_weight
from ..graph.passes import remove_unused
from ..graph.sites import Site, SiteMap
from ..graph.weight_file import SharedWeights
from ..numerics.packing import load_packed_weights, save_packed_weights
from ..numerics.parts import Weight
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat, SitePlan, WeightFormat
from ..numerics.weight import QuantizedWeight, quantize_weight
from ..recipe.quantize import QuantizeOptions
from .fold import ChannelFold, fold_channels
from .fold_check import AppliedFold
from .groups import InputDecision, InputGroup
from .qdq.linear import rewrite_linear
from .qdq.nodes import SiteWeights
from .qdq.per_token import TokenSite, rewrite_token_linear
from .rounding import Rounded, correct_biases
from .separate_graphs import float_parameters

Floats = NDArray[np.float64]


@dataclass(slots=True)
class SharedGraphs:
    """Hold the calibrated graphs of `export`, their plan, and what was decided by group.

    Graphs of the folder `apart` are quantized already and written as they are.
    """

    export: Path
    models: Mapping[str, ir.Model]
    site_map: SiteMap
    entries: Mapping[str, SitePlan]
    groups: Sequence[InputGroup]
    decisions: dict[str, InputDecision]
    options: QuantizeOptions
    apart: Path | None = None
    group_of: dict[str, InputGroup] = field(init=False)

    def __post_init__(self) -> None:
        self.group_of = {site.name: group for group in self.groups for site in group.sites}

    def fold_of(self, group: InputGroup) -> AppliedFold | None:
        """Return what goes into the constants in front of a group, None for nothing."""
        decision = self.decisions[group.key]
        scale, shift = decision.scale, decision.shift
        if not decision.divides or not (np.any(scale != 1) or np.any(shift)):
            return None
        taken = shift if decision.subtracts else np.zeros_like(scale)
        return AppliedFold(group.sites, scale.astype(np.float32), taken.astype(np.float32))

    def fold(self) -> None:
        """Fold scales and shifts into weights, biases and what makes the inputs."""
        for name, model in self.models.items():
            fold_channels(model.graph, self.site_map.of_graph(name), self._folds())

    def rounding_input(self, site: Site) -> tuple[SmoothedInput, QParams | None]:
        """Return what the product of a site is fed, and how that is rounded."""
        group = self.group_of.get(site.name)
        if group is None:
            return plain_input(site), None
        decision = self.decisions[group.key]
        shift = decision.shift if np.any(decision.shift) else None
        smoothed = replace(group.plain, scale=decision.scale, shift=shift)
        return smoothed, decision.qparams.deployed()

    def weight(self, site: Site) -> Weight:
        """Return the weight [O, I] of the folded graph."""
        return site_weight(self.models[site.graph].graph, site)

    def nearest(self, weight: Weight, site: Site) -> QuantizedWeight:
        """Return a site's weight rounded to nearest."""
        planned, group = self.entries[site.name].weight, self.group_of.get(site.name)
        assert planned is not None
        seen = self.decisions[group.key].mean_square if group else None
        return quantize_weight(weight, planned, importance_of(seen, planned, self.options))

    def filled(self, site: Site) -> ActivationFormat | None:
        """Return the plan's entry of a site's input with its scale in it."""
        group, planned = self.group_of.get(site.name), self.entries[site.name].activation
        if group is None or planned is None:
            return planned
        return self.decisions[group.key].qparams.fill(planned)

    def write(
        self, output: Path, weights: Mapping[str, QuantizedWeight], rounded: Mapping[str, Rounded]
    ) -> None:
        """Write every graph of the export, Q/DQ where a site is planned, and their weights."""
        floats: dict[str, NDArray[np.generic]] = {}
        for name, model in self.models.items():
            sites = self.site_map.of_graph(name)
            correct_biases(model.graph, sites, rounded)
            floats |= float_parameters(model.graph, [s for s in sites if s.name in weights])
        for group in self.groups:
            floats |= stored_tables(group, self.decisions[group.key])
        packed = dict(weights)
        if self.apart is not None:
            others, more = load_packed_weights(self.apart / "weights.safetensors")
            packed, floats = packed | others, floats | more
        save_packed_weights(packed, floats, output / "weights.safetensors")
        changed = {site.graph for site in self.site_map.sites if site.name in weights}
        with SharedWeights(output) as file:
            for path in sorted(self.export.glob("*.onnx")):
                name = path.stem
                model = self.models[name] if name in self.models else self._load(path)
                if name in changed:
                    sites = self.site_map.of_graph(name)
                    if name not in self.models:
                        fold_channels(model.graph, sites, self._folds())
                        correct_biases(model.graph, sites, rounded)
                    self._insert(model.graph, sites, weights)
                file.write(model, name)

    def _load(self, path: Path) -> ir.Model:
        """Return a graph of the export, or the one that takes its place."""
        other = None if self.apart is None else self.apart / path.name
        return load_graph(path if other is None or not other.is_file() else other)

    def _insert(
        self, graph: ir.Graph, sites: Sequence[Site], weights: Mapping[str, QuantizedWeight]
    ) -> None:
        """Rewrite the sites that have quantized weights, by the form that each needs."""
        for site in sites:
            if site.name not in weights:
                continue
            node, weight = site_node(graph, site), weights[site.name]
            if site.name in self.group_of:
                qparams = self.decisions[self.group_of[site.name].key].qparams
                rewrite_token_linear(graph, node, site, TokenSite(weight, qparams))
            else:
                rewrite_linear(graph, node, site, SiteWeights(weight))
        remove_unused(graph)

    def _folds(self) -> list[tuple[tuple[Site, ...], ChannelFold]]:
        found = []
        for group in self.groups:
            d = self.decisions[group.key]
            found.append((group.sites, ChannelFold(d.scale, d.shift, d.divides, d.subtracts)))
        return found


def importance_of(
    mean_square: Floats | None, planned: WeightFormat, options: QuantizeOptions
) -> Floats | None:
    """Return what weights the search of a weight's range, [C] (None: nothing)."""
    return mean_square if options.data_aware and planned.granularity == "per_channel" else None


def stored_tables(group: InputGroup, decision: InputDecision) -> dict[str, NDArray[np.generic]]:
    """Return what weights.safetensors holds of a group beside packed weights, by site."""
    tables: dict[str, NDArray[np.generic]] = {"smoothing": decision.scale.astype(np.float32)}
    if np.any(decision.shift):
        tables["center"] = decision.shift.astype(np.float32)
    tables |= decision.qparams.token_tables()
    return {f"{s.name}.{name}": values for s in group.sites for name, values in tables.items()}
