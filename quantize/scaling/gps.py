"""Scales by GPS for inputs that are rounded per tensor: they need a run of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.smoothed import Scaling
from ...calibrate.statistics import Statistics, TensorStats
from ...recipe.quantize import QuantizeOptions
from ..groups import InputGroup, Readers, summarize
from .fit import GPS_EXPONENT, gain_scalings
from .predicted import Way


def fitted_scaling(
    group: InputGroup,
    way: Way,
    stats: TensorStats,
    readers: Readers,
    by_gain: Mapping[tuple[str, Way], Scaling],
) -> Scaling:
    """Return the scaling that a way fits to a group's input; those by GPS were fitted before."""
    known = by_gain.get((group.key, way))
    return way.fit(stats, readers, group.bits) if known is None else known


def gain_scalings_of(
    run: CalibrationRun,
    graphs: Mapping[str, ir.Graph],
    groups: Sequence[InputGroup],
    ways: Mapping[str, Sequence[Way]],
    statistics: Statistics,
    options: QuantizeOptions,
) -> dict[tuple[str, Way], Scaling]:
    """Return the scaling of each group by each of its ways that is GPS, by group and way.

    `statistics` are of the samples of the run, which is made once for each graph and centring.
    """
    found: dict[tuple[str, Way], Scaling] = {}
    for name, graph in graphs.items():
        for centered in (False, True):
            way = Way("gps", centered)
            members = [
                replace(group, stats=group.seen(statistics), tokens=None)
                for group in groups
                if group.graph == name and way in ways[group.key]
            ]
            alive = [group for group in members if np.any(group.stats.count)]
            first = {
                g.key: Way(GPS_EXPONENT, centered).fit(g.stats, summarize(graph, g.sites), g.bits)
                for g in members
            }
            if alive:
                first |= gain_scalings(graph, alive, first, run.inside(name), options)
            found |= {(key, way): scaling for key, scaling in first.items()}
    return found
