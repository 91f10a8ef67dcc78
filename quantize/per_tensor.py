"""Inputs that are rounded per tensor: convolutions, and every graph that is not a generator's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import Scaling
from ..calibrate.statistics import Statistics
from ..graph.sites import SiteMap
from ..numerics.noise import rounding_sqnr_db
from ..numerics.qparams import QParams
from ..numerics.scheme import SitePlan
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from .choose_granularity import token_decisions
from .groups import InputDecision, InputGroup, summarize
from .scaling.choose_per_tensor import search_ways
from .scaling.gps import fitted_scaling, gain_scalings_of
from .scaling.predicted import Way, way_of
from .tensor_qparams import best_candidate, tensor_candidates

CLIP_POWER = 4  # clips less than the square does


@dataclass(frozen=True, slots=True)
class PredictedError:
    """Chooses channel scales by predicted error, or by the error on samples left out.

    Clips are those of least error on all samples, by sums over each channel. Second moments stay
    below `max_memory` bytes.
    """

    run: CalibrationRun
    site_map: SiteMap
    statistics: Statistics
    options: QuantizeOptions
    max_memory: int = MAX_MEMORY

    def decide(
        self,
        graphs: Mapping[str, ir.Graph],
        groups: Sequence[InputGroup],
        entries: Mapping[str, SitePlan],
    ) -> tuple[dict[str, SitePlan], dict[str, InputDecision]]:
        """Return the plan with what a search has found, and decisions by each group's key."""
        ways = search_ways(
            self.run,
            self.site_map,
            graphs,
            groups,
            self.statistics,
            self.options,
            max_memory=self.max_memory,
        )
        scalings = self.fit(graphs, groups, {group.key: way_of(group, ways) for group in groups})
        found = self.round_inputs(groups, scalings)
        power = CLIP_POWER if self.options.clip_power is None else self.options.clip_power
        options = msgspec.structs.replace(self.options, clip_power=power)
        tokens = token_decisions(self.run, graphs, groups, scalings, options)
        return decided(entries, groups, ways, tokens), found | tokens

    def fit(
        self,
        graphs: Mapping[str, ir.Graph],
        groups: Sequence[InputGroup],
        ways: Mapping[str, Way],
    ) -> dict[str, Scaling]:
        """Return the scales and centres of every group's channels, fitted to all samples."""
        by_gain = gain_scalings_of(
            self.run,
            graphs,
            groups,
            {key: [way] for key, way in ways.items()},
            self.statistics,
            self.options,
        )
        return {
            g.key: fitted_scaling(
                g, ways[g.key], g.stats, summarize(graphs[g.graph], g.sites), by_gain
            )
            for g in groups
        }

    def round_inputs(
        self, groups: Sequence[InputGroup], scalings: Mapping[str, Scaling]
    ) -> dict[str, InputDecision]:
        """Choose among the candidates of each group by their errors on the samples.

        A scale that the plan already has is kept. FP8 needs no run: its numbers are finest near
        zero, so the scale puts the largest value seen on the largest number.
        """
        options = self.options
        candidates = {g.key: tensor_candidates(g, scalings[g.key], options) for g in groups}
        measured = [g for g in groups if options.clip_power != 0 and g.activation.grid != "fp8"]
        tried: dict[str, dict[str, list[QParams]]] = {}
        channels: dict[str, dict[str, Scaling]] = {}
        axes: dict[str, dict[str, int]] = {}
        for g in measured:
            tried.setdefault(g.graph, {})[g.tensor] = candidates[g.key]
            channels.setdefault(g.graph, {})[g.tensor] = scalings[g.key]
            axes.setdefault(g.graph, {})[g.tensor] = g.sites[0].channel_axis
        errors = self.run.channel_clip_errors(tried, channels, axes) if measured else {}
        power = options.clip_power or CLIP_POWER
        found = {}
        for g in groups:
            scaling, best, sqnr_db = scalings[g.key], 0, None
            if f"{g.graph}/{g.tensor}" in errors:
                pairs = errors[f"{g.graph}/{g.tensor}"]
                gain = np.sqrt(g.energy) * scaling.smoothing
                best = best_candidate([pair[power // 4] for pair in pairs], gain, power)
                signal = float(np.sum(g.stats.square / scaling.smoothing**2 * gain**2))
                sqnr_db = rounding_sqnr_db(signal, float(np.sum(pairs[best][0] * gain**2)))
            qparams = candidates[g.key][best]
            found[g.key] = InputDecision(scaling, qparams, sqnr_db, None, g.divides, g.subtracts)
        return found


def decided(
    entries: Mapping[str, SitePlan],
    groups: Sequence[InputGroup],
    ways: Mapping[str, Way],
    tokens: Collection[str],
) -> dict[str, SitePlan]:
    """Return the plan with what a search has found, so that it gives the same scales again."""
    found = dict(entries)
    for group in groups:
        activation = group.activation
        if group.key not in tokens:
            activation = msgspec.structs.replace(activation, granularity="per_tensor")
        for site in group.sites:
            entry = msgspec.structs.replace(found[site.name], activation=activation)
            if group.key in ways:
                entry = msgspec.structs.replace(entry, smoothing=ways[group.key].scales)
            found[site.name] = entry
    return found
