"""Q/DQ graphs of a model whose graphs have weights of their own: tokenizers and custom ONNX.

A scale of the input goes into the constants in front of it, or a node of its own; the weight takes
it when it is rounded, and the graph gets the rounded weight alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.smoothed import Scaling, SmoothedInput
from ..calibrate.statistics import Statistics
from ..errors import RecipeError
from ..graph.builder import constant_array
from ..graph.linears import site_weight
from ..graph.sites import CONSTANT_ROLES, Site, SiteMap
from ..numerics.packing import save_packed_weights
from ..numerics.parts import ScaledWeight, Weight
from ..numerics.qparams import QParams, input_offset
from ..numerics.scheme import ActivationFormat, SitePlan
from ..numerics.weight import QuantizedWeight, quantize_weight
from ..recipe.quantize import QuantizeOptions
from .fold_check import AppliedFold
from .groups import InputDecision, InputGroup, site_statistics
from .qdq.convolution import insert_qdq
from .qdq.nodes import SiteWeights, offset_output
from .rounding import Rounded, correct_biases

FP16_MAX = 65504.0
LARGE = 1024  # bytes, from which graphs keep a constant in their weight file

Arrays = dict[str, NDArray[np.generic]]


@dataclass(slots=True)
class SeparateGraphs:
    """Hold the graphs of a model, its plan, and what was decided for its inputs, by group."""

    models: Mapping[str, ir.Model]
    site_map: SiteMap
    entries: Mapping[str, SitePlan]
    groups: Sequence[InputGroup]
    decisions: dict[str, InputDecision]
    statistics: Statistics
    options: QuantizeOptions
    group_of: dict[str, InputGroup] = field(init=False)

    def __post_init__(self) -> None:
        self.group_of = {site.name: group for group in self.groups for site in group.sites}

    def fold_of(self, group: InputGroup) -> AppliedFold | None:
        """Return what goes into the constants in front of a group, None for nothing."""
        decision = self.decisions[group.key]
        if not decision.divides:
            return None
        scale, center = input_scaling(self.entries[group.key], decision.scaling)
        channels = len(group.stats.low)
        if scale is None:
            scale = np.ones(channels, np.float32)
        if center is None:
            offset = input_offset(self.filled(group.sites[0]))
            center = np.full(channels, offset, np.float32)
        if np.all(scale == 1) and not center.any():
            return None
        return AppliedFold(group.sites, scale, center)

    def fold(self) -> None:
        """Put scales and offsets into producers while all weights are still floats."""
        for group in self.groups:
            fold = self.fold_of(group)
            if fold is not None and group.sites[0].producer_fold is not None:
                fold.apply(self.models[group.graph].graph)

    def rounding_input(self, site: Site) -> tuple[SmoothedInput, QParams | None]:
        """Return what the product of a site is fed, and how that is rounded."""
        decision, plain = self._decision(site), SmoothedInput(site.input, site.channel_axis)
        if decision is not None and decision.qparams.granularity == "per_token":
            plain = self.group_of[site.name].plain
        scale, center = input_scaling(self.entries[site.name], self._scaling(site))
        smoothed = replace(
            plain,
            scale=None if scale is None else scale.astype(np.float64),
            shift=None if center is None else center.astype(np.float64),
        )
        return smoothed, decision.qparams.deployed() if decision else None

    def weight(self, site: Site) -> Weight:
        """Return the weight [O, I, ...] that meets a site's scaled input."""
        graph = self.models[site.graph].graph
        return scaled_weight(graph, site, self.entries[site.name], self._scaling(site))

    def nearest(self, weight: Weight, site: Site) -> QuantizedWeight:
        """Return a site's weight rounded to nearest."""
        return round_to_nearest(
            weight,
            site,
            self.entries[site.name],
            self.statistics,
            self.options,
            self._scaling(site),
        )

    def filled(self, site: Site) -> ActivationFormat | None:
        """Return the plan's entry of a site's input with its scale in it."""
        decision = self._decision(site)
        if decision is None:
            return None
        centered = decision.scaling.center is not None
        if decision.qparams.granularity == "per_token":
            planned = self.group_of[site.name].activation
            filled = decision.qparams.fill(planned)
            return msgspec.structs.replace(filled, centered=centered)
        return decision.qparams.as_format(centered=centered)

    def write(
        self, output: Path, weights: Mapping[str, QuantizedWeight], rounded: Mapping[str, Rounded]
    ) -> None:
        """Write the Q/DQ graphs and weights.safetensors into a folder."""
        floats: Arrays = {}
        for name, model in self.models.items():
            sites = self.site_map.of_graph(name)
            chosen = self._chosen(sites, weights)
            for site in sites:
                if site.name in chosen:
                    floats |= stored_floats(site, chosen[site.name])
            correct_biases(model.graph, sites, rounded)
            for key, value in float_parameters(model.graph, sites).items():
                known = floats.get(key)
                same = known is None or np.array_equal(known, value)
                floats[key if same else f"{name}.{key}"] = value
            insert_qdq(model.graph, [self._with_its_fold(site) for site in sites], chosen)
            data = f"{name}.onnx.data"
            ir.save(model, output / f"{name}.onnx", external_data=data, size_threshold_bytes=LARGE)
        save_packed_weights(weights, floats, output / "weights.safetensors")

    def _chosen(
        self, sites: Sequence[Site], weights: Mapping[str, QuantizedWeight]
    ) -> dict[str, SiteWeights]:
        """Return what the products of a graph compute with, but for those with constants."""
        found: dict[str, SiteWeights] = {}
        for site in sites:
            if site.weight is None or site.role in CONSTANT_ROLES:
                continue
            if site.name not in weights:
                weight = site_weight(self.models[site.graph].graph, site)
                found[site.name] = SiteWeights(None, floating=to_half(weight, site.name))
                continue
            scale, center = input_scaling(self.entries[site.name], self._scaling(site))
            decision = self._decision(site)
            found[site.name] = SiteWeights(
                weights[site.name],
                activation=self.filled(site),
                qparams=None if decision is None else decision.qparams,
                smoothing=scale,
                center=center,
                center_output=None if center is None else offset_output(self.weight(site), center),
            )
        return found

    def _with_its_fold(self, site: Site) -> Site:
        """Return the site, without a fold where its input's scale has a node of its own."""
        decision = self._decision(site)
        if decision is not None and decision.divides:
            return site
        return msgspec.structs.replace(site, fold=None, producer_fold=None)

    def _scaling(self, site: Site) -> Scaling | None:
        decision = self._decision(site)
        return None if decision is None else decision.scaling

    def _decision(self, site: Site) -> InputDecision | None:
        group = self.group_of.get(site.name)
        return None if group is None else self.decisions[group.key]


def input_scaling(
    entry: SitePlan, scaling: Scaling | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Return what the input is divided by and what is then subtracted, [C]; None for nothing."""
    scale = center = None
    if scaling is not None and entry.smoothing is not None:
        scale = scaling.smoothing.astype(np.float32)
    if scaling is not None and scaling.center is not None:
        center = (scaling.center / scaling.smoothing).astype(np.float32)
    return scale, center


def scaled_weight(graph: ir.Graph, site: Site, entry: SitePlan, scaling: Scaling | None) -> Weight:
    """Return the weight [O, I, ...] that meets the scaled input."""
    weight = site_weight(graph, site)
    scale, _ = input_scaling(entry, scaling)
    if scale is None or np.all(scale == 1):
        return weight
    return ScaledWeight(weight, scale)


def round_to_nearest(
    weight: Weight,
    site: Site,
    entry: SitePlan,
    statistics: Statistics,
    options: QuantizeOptions,
    scaling: Scaling | None,
) -> QuantizedWeight:
    """Return a weight rounded to nearest, by the mean squares of its scaled input's channels."""
    assert entry.weight is not None
    importance = None
    if options.data_aware and entry.weight.granularity == "per_channel":
        stats = site_statistics(statistics, site.name)
        ones = np.ones_like(stats.square) if scaling is None else scaling.smoothing
        importance = stats.mean_square / ones**2
    return quantize_weight(weight, entry.weight, importance, tap_sums=options.tap_sums)


def to_half(weight: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Round to float16, which is how high-precision weights are stored and built.

    Raises:
        RecipeError: a weight beyond float16.
    """
    worst = float(np.abs(weight).max())
    if not worst <= FP16_MAX:
        raise RecipeError(
            f"{name} has a weight of {worst:.3g}, beyond float16",
            do="give it a weight format in the plan",
        )
    return weight.astype(np.float16).astype(np.float32)


def stored_floats(site: Site, weights: SiteWeights) -> Arrays:
    """Return what weights.safetensors holds of a site beside its packed weight."""
    found: Arrays = {}
    if weights.floating is not None:
        found[f"{site.name}.weight"] = weights.floating.astype(np.float16)
    if weights.smoothing is not None:
        found[f"{site.name}.smoothing"] = weights.smoothing
    if weights.center is not None:
        found[f"{site.name}.center"] = weights.center
    if weights.qparams is not None:
        tables = weights.qparams.token_tables()
        found |= {f"{site.name}.{name}": table for name, table in tables.items()}
    return found


def float_parameters(graph: ir.Graph, sites: Sequence[Site]) -> Arrays:
    """Return biases, norms and embeddings: what is called a parameter, or is large."""
    weights = {site.weight for site in sites}
    weights |= {f"{site.name}.bias" for site in sites if site.role in CONSTANT_ROLES}
    found: Arrays = {}
    for name, value in graph.initializers.items():
        if name in weights or value.dtype != ir.DataType.FLOAT:
            continue
        array = constant_array(value)
        if name.rpartition(".")[2] in ("weight", "bias") or array.nbytes >= LARGE:
            found[name] = array
    return found
