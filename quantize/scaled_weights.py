"""Weights of a tokenizer's sites as their scaled inputs meet them, to be rounded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.smoothed import Scaling, SmoothedInput
from ..calibrate.statistics import Statistics
from ..graph.linears import site_node, site_weight
from ..graph.sites import Site, SiteMap
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat, SitePlan
from ..numerics.weight import QuantizedWeight, quantize_weight
from ..recipe.options import QuantizeOptions
from .ranges import site_statistics
from .rounding import Task


def input_scaling(
    entry: SitePlan, scaling: Scaling | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """What the input is divided by and what is then subtracted, [C]; None for nothing."""
    scale = center = None
    if scaling is not None and entry.smoothing is not None:
        scale = scaling.smoothing.astype(np.float32)
    if scaling is not None and scaling.center is not None:
        center = (scaling.center / scaling.smoothing).astype(np.float32)
    return scale, center


def scaled_weight(
    graph: ir.Graph, site: Site, entry: SitePlan, scaling: Scaling | None
) -> NDArray[np.float32]:
    """The weight [O, I, ...] that meets the scaled input."""
    weight = site_weight(graph, site)
    scale, _ = input_scaling(entry, scaling)
    if scale is None:
        return weight
    scaled: NDArray[np.float32] = weight * scale.reshape(1, -1, *(1,) * (weight.ndim - 2))
    return scaled


def nearest(
    weight: NDArray[np.float32],
    site: Site,
    entry: SitePlan,
    statistics: Statistics,
    options: QuantizeOptions,
    scaling: Scaling | None,
) -> QuantizedWeight:
    assert entry.weight is not None
    importance = None
    if options.data_aware and entry.weight.granularity == "per_channel":
        stats = site_statistics(statistics, site.name)
        ones = np.ones_like(stats.square) if scaling is None else scaling.smoothing
        importance = stats.mean_square / ones**2
    return quantize_weight(weight, entry.weight, importance, tap_sums=options.tap_sums)


def rounding_tasks(
    models: Mapping[str, ir.Model],
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
    statistics: Statistics,
    options: QuantizeOptions,
    activations: Mapping[str, ActivationFormat],
    scalings: Mapping[str, Scaling],
) -> list[Task]:
    """The weights of the folded graphs that data rounds, and what their products are fed."""
    tasks = []
    for site in site_map.sites:
        entry, scaling = entries[site.name], scalings.get(site.name)
        if not Task.needed(entry, correct=options.bias_correction):
            continue
        graph, chosen = models[site.graph].graph, activations.get(site.name)
        scale, center = input_scaling(entry, scaling)
        view = SmoothedInput(
            site.input,
            site.channel_axis,
            scale=None if scale is None else scale.astype(np.float64),
            shift=None if center is None else center.astype(np.float64),
        )
        tasks.append(
            Task(
                site,
                entry,
                site_node(graph, site),
                view,
                None if chosen is None else QParams.from_format(chosen),
                int(site_statistics(statistics, site.name).count),
                partial(scaled_weight, graph, site, entry, scaling),
                partial(
                    nearest,
                    site=site,
                    entry=entry,
                    statistics=statistics,
                    options=options,
                    scaling=scaling,
                ),
            )
        )
    return tasks
