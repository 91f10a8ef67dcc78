"""What becomes of the inputs of a generator's sites: channel scales and shifts, then their grids.

Everything is decided in the graph of all positions, group by group of sites that share an input,
by passes over the samples; a pass serves all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..recipe import QuantizeOptions
from .absorb import Absorption
from .activations import decibel, site_weight
from .formats import quantize_weight
from .gps import gps_scale
from .scaling import Scaling, centers, search_scaling, smoothing_scale
from .statistics import POSITION, Statistics, TensorStats
from .token_grids import TokenGrid, best_grid, format_candidates
from .token_groups import TokenGroup
from .view_passes import FullGraph
from .views import Grid, View

Floats = NDArray[np.float64]
GPS_EXPONENT = 0.5  # of the SmoothQuant scales that GPS begins with


@dataclass(frozen=True, slots=True)
class Decision:
    """Of a group: what is absorbed, the grid, and the grid's SQNR in dB weighted as in the product.

    `energy` [C] is the mean square of each channel once that is absorbed.
    """

    absorption: Absorption
    grid: TokenGrid
    sqnr_db: float
    energy: Floats


def decide_groups(
    graph: ir.Graph, groups: Sequence[TokenGroup], full: FullGraph, options: QuantizeOptions
) -> dict[str, Decision]:
    """Scales, shifts and grids by the name of each group's first site."""
    scalings = first_scalings(groups, full, options)
    gps = [group for group in groups if group.entry.smoothing == "gps"]
    if gps:
        scalings |= gain_scalings(graph, gps, scalings, full, options)
    views = {g.key: scaled_view(g, scalings[g.key]) for g in groups}
    channels, ranges = scaled_ranges(groups, scalings, full)
    grids = {g.key: allowed_grids(g, ranges[g.key], options) for g in groups}
    gains = {g.key: np.sqrt(g.readers.energy) * scalings[g.key].smoothing for g in groups}
    errors = full.grid_errors(views, grids, gains)
    found = {}
    for g in groups:
        scaling, (squares, fourths) = scalings[g.key], errors[g.key]
        seen = ranges[g.key].count // len(scaling.smoothing)
        powers = fourths if options.clip_power == 4 else squares
        grid, best = best_grid(grids[g.key], powers, seen)
        noise = float(np.take_along_axis(squares, best[None], axis=0).sum())
        signal = float(np.sum(channels[g.key].square * gains[g.key] ** 2))
        shift = np.zeros(1) if scaling.center is None else scaling.center / scaling.smoothing
        found[g.key] = Decision(
            Absorption(
                scaling.smoothing,
                np.broadcast_to(shift, scaling.smoothing.shape),
                g.divides,
                g.subtracts,
            ),
            TokenGrid.of(grid),
            decibel(signal, noise),
            channels[g.key].square / max(1, channels[g.key].count),
        )
    return found


def allowed_grids(group: TokenGroup, ranges: TensorStats, options: QuantizeOptions) -> list[Grid]:
    """What a group's input may be rounded to: one grid where the plan already has its scale."""
    wanted = group.activation
    if wanted.scale is not None and group.positions is None:
        scale, shift = np.array([wanted.scale]), np.array([wanted.shift])
        return [Grid(scale, shift, wanted.bits, wanted.grid)]
    return format_candidates(ranges, wanted, allow_shift=options.shift)


def first_scalings(
    groups: Sequence[TokenGroup], full: FullGraph, options: QuantizeOptions
) -> dict[str, Scaling]:
    """Before gains are known: no scales, SmoothQuant's, or those of least predicted error.

    A position's range is divided out first, where it will be: else the widest position would
    decide the channels' scales for all.
    """
    views, stats = {}, {}
    for group in groups:
        stats[group.key] = group.stats
        if group.positions is not None and group.entry.smoothing is not None:
            reach = np.maximum(-group.positions.low, group.positions.high)
            level = np.maximum(reach, 1e-4 * max(float(reach.max()), 1e-12))
            views[group.key] = replace(group.view, level=level / np.median(level))
    if views:
        seen = full.ranges(views)
        stats |= {key: seen[key] for key in views}
    return {g.key: first_scaling(g, stats[g.key], options) for g in groups}


def first_scaling(group: TokenGroup, stats: TensorStats, options: QuantizeOptions) -> Scaling:
    method, weight = group.entry.smoothing, group.entry.weight
    assert weight is not None
    # FP8 is finest around 0, which a shift would move away.
    movable = options.shift and group.subtracts and group.activation.grid == "uniform"
    if method is None:
        return Scaling(np.ones_like(stats.low), None)
    if method == "search":
        bits = (group.activation.bits, weight.bits)
        return search_scaling(stats, group.readers, bits, allow_center=movable, free=movable)
    exponent = GPS_EXPONENT if method == "gps" else method
    if method == "gps" and movable:
        scale = smoothing_scale(stats, group.readers.absmax, exponent)
        return Scaling(scale, centers(stats))
    reach = np.maximum(-stats.low, stats.high)
    around = replace(stats, low=-reach, high=reach)
    return Scaling(smoothing_scale(around, group.readers.absmax, exponent), None)


def gain_scalings(
    graph: ir.Graph,
    groups: Sequence[TokenGroup],
    scalings: Mapping[str, Scaling],
    full: FullGraph,
    options: QuantizeOptions,
) -> dict[str, Scaling]:
    """GPS on top of `scalings`; the reference channel's grid is that of its position."""
    channels, ranges = scaled_ranges(groups, scalings, full)
    grids: dict[str, Grid] = {}
    for g in groups:
        (grids[g.key],) = format_candidates(
            ranges[g.key], g.activation, allow_shift=options.shift, clip=False
        )
    views = {g.key: scaled_view(g, scalings[g.key]) for g in groups}
    gains = full.gains(views, grids)
    found = {}
    for g in groups:
        before = scalings[g.key]
        width = channels[g.key].high - channels[g.key].low
        reference = int(np.argmax(width))
        peaks = g.readers.absmax * before.smoothing
        start = float(np.sqrt(width[reference] / max(2 * peaks[reference], 1e-12)))
        rounded, error = weight_energies(graph, g, before.smoothing)
        factor = gps_scale(*gains[g.key], rounded, error, reference, start)
        scale = before.smoothing * factor
        found[g.key] = replace(before, smoothing=scale / np.exp(np.mean(np.log(scale))))
    return found


def weight_energies(graph: ir.Graph, group: TokenGroup, scale: Floats) -> tuple[Floats, Floats]:
    """sum Q(W)^2 and sum (W - Q(W))^2 by input channel over all readers, W scaled; [C] both."""
    rounded = np.zeros_like(scale)
    error = np.zeros_like(scale)
    assert group.entry.weight is not None
    for site in group.sites:
        weight = (site_weight(graph, site) * scale).astype(np.float32)
        codes = quantize_weight(weight, group.entry.weight).dequantize().astype(np.float64)
        rounded += np.square(codes).sum(axis=0)
        error += np.square(codes - weight).sum(axis=0)
    return rounded, error


def scaled_view(group: TokenGroup, scaling: Scaling) -> View:
    shift = None if scaling.center is None else scaling.center / scaling.smoothing
    return replace(group.view, scale=scaling.smoothing, shift=shift)


def scaled_ranges(
    groups: Sequence[TokenGroup], scalings: Mapping[str, Scaling], full: FullGraph
) -> tuple[Statistics, dict[str, TensorStats]]:
    """By group: statistics of the scaled channels, and ranges of its grids' positions, [T] or [1].

    Only groups with positions need a pass.
    """
    found = full.ranges(
        {g.key: scaled_view(g, scalings[g.key]) for g in groups if g.positions is not None}
    )
    channels = {
        g.key: found[g.key] if g.key in found else scaled_stats(g.stats, scalings[g.key])
        for g in groups
    }
    ranges = {g.key: found.get(f"{g.key}{POSITION}") or one_range(channels[g.key]) for g in groups}
    return channels, ranges


def scaled_stats(stats: TensorStats, scaling: Scaling) -> TensorStats:
    """Of x / s - p without another pass; the squares are those of x / s, p would need sums."""
    s = scaling.smoothing
    p = 0.0 if scaling.center is None else scaling.center / s
    return TensorStats(stats.low / s - p, stats.high / s - p, stats.square / s**2, stats.count)


def one_range(stats: TensorStats) -> TensorStats:
    """The range of all channels, as that of one position."""
    low, high = float(stats.low.min()), float(stats.high.max())
    return TensorStats(
        np.array([low]), np.array([high]), np.array([stats.square.sum()]), stats.count
    )
