"""Fit scales and shifts to the channels of inputs, by one method for all groups of a graph.

Everything is decided in a graph that is calibrated, group by group of sites that share an input, by
runs over the samples; a run serves all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.clip_error import Power
from ...calibrate.observers.smoothed import Scaling, SmoothedInput
from ...calibrate.statistics import POSITION, Statistics, TensorStats
from ...graph.linears import site_weight
from ...numerics.gps import gps_scale
from ...numerics.noise import rounding_sqnr_db
from ...numerics.parts import made_in_parts, parts
from ...numerics.qparams import QParams
from ...numerics.scheme import SitePlan
from ...numerics.weight import quantize_weight
from ...recipe.quantize import QuantizeOptions
from ..groups import InputGroup
from ..token_qparams import best_grid, format_candidates, token_candidates
from .predicted import centers, smoothing_scale

Floats = NDArray[np.float64]
GPS_EXPONENT = 0.5  # of the SmoothQuant scales that GPS begins with


@dataclass(frozen=True, slots=True)
class Method:
    """Say how channels are scaled: not, by SmoothQuant's exponent, or by GPS.

    `centered` first moves each channel's middle to zero, where the producer takes that for free.
    """

    scales: Literal["gps"] | float | None
    centered: bool = False


def method_of(entry: SitePlan) -> Method:
    """Return the method that a plan names; GPS centres channels, as published."""
    assert entry.smoothing != "search" and entry.smoothing != "predicted"
    return Method(entry.smoothing, entry.smoothing == "gps")


def levelled(groups: Sequence[InputGroup], run: CalibrationRun) -> Statistics:
    """Return statistics by the name of each group's first site, a position's range divided out.

    It will be, where positions have scales: else the widest one would decide the channels' scales
    for all.
    """
    views = {}
    for group in groups:
        if group.tokens is not None:
            reach = np.maximum(-group.tokens.low, group.tokens.high)
            level = np.maximum(reach, 1e-4 * max(float(reach.max()), 1e-12))
            views[group.key] = replace(group.plain, token_scale=level / np.median(level))
    seen = run.ranges(views)
    return {group.key: seen.get(group.key, group.stats) for group in groups}


def fit_scalings(
    methods: Mapping[str, Method],
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    seen: Statistics,
    run: CalibrationRun,
    options: QuantizeOptions,
) -> dict[str, Scaling]:
    """Return the scaling of each group by the method of its key.

    `seen` is what `levelled` returns of `run`. One run measures all that GPS needs.
    """
    found = {
        g.key: Scaling(np.ones_like(g.stats.low), None)
        if methods[g.key].scales is None
        else first_scaling(methods[g.key], g, seen[g.name], options)
        for g in groups
    }
    by_gain = [g for g in groups if methods[g.key].scales == "gps"]
    if by_gain:
        found |= gain_scalings(graph, by_gain, found, run, options)
    return found


def first_scaling(
    method: Method, group: InputGroup, stats: TensorStats, options: QuantizeOptions
) -> Scaling:
    """Return SmoothQuant's scales, which GPS begins with."""
    assert method.scales is not None
    exponent = GPS_EXPONENT if method.scales == "gps" else method.scales
    centered = method.centered and takes_shift(group, options)
    scale = smoothing_scale(stats, group.absmax, exponent, centered=centered)
    return Scaling(scale, centers(stats) if centered else None)


def takes_shift(group: InputGroup, options: QuantizeOptions) -> bool:
    """Return whether a shift a channel costs nothing.

    FP8 is finest around 0, which it would move away.
    """
    return options.shift and group.subtracts and group.activation.grid == "uniform"


def gain_scalings(
    graph: ir.Graph,
    groups: Sequence[InputGroup],
    scalings: Mapping[str, Scaling],
    run: CalibrationRun,
    options: QuantizeOptions,
) -> dict[str, Scaling]:
    """Return GPS on top of `scalings`; the reference channel's scale is that of its token."""
    channels, ranges = scaled_ranges(groups, scalings, run)
    grids: dict[str, QParams] = {}
    for g in groups:
        (grids[g.key],) = format_candidates(
            ranges[g.key], g.activation, allow_shift=options.shift, clip=False
        )
    views = {g.key: scaled_input(g, scalings[g.key]) for g in groups}
    gains = run.gps_terms(views, grids)
    found = {}
    for g in groups:
        before = scalings[g.key]
        width = channels[g.key].high - channels[g.key].low
        reference = int(np.argmax(width))
        peaks = g.absmax * before.smoothing
        start = float(np.sqrt(width[reference] / max(2 * peaks[reference], 1e-12)))
        rounded, error = weight_energies(graph, g, before.smoothing)
        factor = gps_scale(*gains[g.key], rounded, error, reference, start)
        scale = before.smoothing * factor
        found[g.key] = replace(before, smoothing=scale / np.exp(np.mean(np.log(scale))))
    return found


def weight_energies(graph: ir.Graph, group: InputGroup, scale: Floats) -> tuple[Floats, Floats]:
    """Return sum Q(W)^2 and sum (W - Q(W))^2 by input channel over all readers, W scaled.

    [C] both.
    """
    rounded = np.zeros_like(scale)
    error = np.zeros_like(scale)
    assert group.entry.weight is not None
    for site in group.sites:
        weight = site_weight(graph, site)
        kernel = tuple(range(2, weight.ndim))
        shaped = scale.reshape(1, -1, *(1 for _ in kernel))
        scaled = made_in_parts(weight, lambda part: weight[part] * shaped)  # noqa: B023
        near = quantize_weight(scaled, group.entry.weight).dequantize()
        # By channels, since sums over outputs that are split would be rounded in another order.
        for part in parts(near.swapaxes(0, 1)):
            wide = near[:, part].astype(np.float64)
            rounded[part] += np.square(wide).sum(axis=(0, *kernel))
            error[part] += np.square(wide - scaled[:, part]).sum(axis=(0, *kernel))
    return rounded, error


def scaled_input(group: InputGroup, scaling: Scaling) -> SmoothedInput:
    shift = None if scaling.center is None else scaling.center / scaling.smoothing
    return replace(group.plain, scale=scaling.smoothing, shift=shift)


def scaled_ranges(
    groups: Sequence[InputGroup], scalings: Mapping[str, Scaling], run: CalibrationRun
) -> tuple[Statistics, dict[str, TensorStats]]:
    """Return by group the statistics of scaled channels, and the ranges of tokens [T] or [1].

    Only groups with positions need a pass.
    """
    found = run.ranges(
        {g.key: scaled_input(g, scalings[g.key]) for g in groups if g.tokens is not None}
    )
    channels = {
        g.key: found[g.key] if g.key in found else scaled_stats(g.stats, scalings[g.key])
        for g in groups
    }
    ranges = {g.key: found.get(f"{g.key}{POSITION}") or one_range(channels[g.key]) for g in groups}
    return channels, {key: stats.filled() for key, stats in ranges.items()}


@dataclass(frozen=True, slots=True)
class RoundedInput:
    """Hold the chosen QParams of a group's scaled input, their error and the input's statistics.

    `noise` is the summed square of the error, each channel weighted by `gain` [C], its norm in the
    product, None where it was not measured; `channels` are the statistics of the scaled input.
    """

    qparams: QParams
    noise: float | None
    gain: Floats
    channels: TensorStats

    @property
    def sqnr_db(self) -> float | None:
        """Return the SQNR in dB with channels weighted as in the product; None: not measured."""
        if self.noise is None:
            return None
        return rounding_sqnr_db(float(np.sum(self.channels.square * self.gain**2)), self.noise)


def round_inputs(
    groups: Sequence[InputGroup],
    scalings: Mapping[str, Scaling],
    fitted: CalibrationRun,
    judged: CalibrationRun | None,
    options: QuantizeOptions,
    every: int = 1,
) -> dict[str, RoundedInput]:
    """Round the inputs of groups by the candidates that fit the ranges of `fitted`.

    Of each position the clip with the least error on `judged` is taken, of `every` one that there
    is. `noise` is that of `judged`, `channels` are those of `fitted`. With `judged` None the first
    is taken, and nothing is measured.
    """
    channels, ranges = scaled_ranges(groups, scalings, fitted)
    views = {g.key: scaled_input(g, scalings[g.key]) for g in groups}
    gains = {g.key: np.sqrt(g.energy) * scalings[g.key].smoothing for g in groups}
    grids = {g.key: token_candidates(g, ranges[g.key], options)[::every] for g in groups}
    if judged is None:
        return {
            g.key: RoundedInput(grids[g.key][0], None, gains[g.key], channels[g.key])
            for g in groups
        }
    power: Power = options.clip_power or 2
    powers: tuple[Power, ...] = (2,) if power == 2 else (2, power)
    errors = judged.clip_errors(views, grids, gains, powers)
    found = {}
    for g in groups:
        sums = errors[g.key]
        grid, best = best_grid(grids[g.key], sums[power], ranges[g.key].count // len(gains[g.key]))
        noise = float(np.take_along_axis(sums[2], best[None], axis=0).sum())
        found[g.key] = RoundedInput(grid, noise, gains[g.key], channels[g.key])
    return found


def scaled_stats(stats: TensorStats, scaling: Scaling) -> TensorStats:
    """Return the statistics of x / s - p without another run; the squares are those of x / s."""
    s = scaling.smoothing
    p = 0.0 if scaling.center is None else scaling.center / s
    return TensorStats(stats.low / s - p, stats.high / s - p, stats.square / s**2, stats.count)


def one_range(stats: TensorStats) -> TensorStats:
    """Return the range of all channels, as that of one position."""
    low, high = float(stats.low.min()), float(stats.high.max())
    return TensorStats(
        np.array([low]), np.array([high]), np.array([stats.square.sum()]), stats.count
    )
