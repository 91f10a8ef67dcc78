"""Per-channel smoothing of a site's input, and the grid its smoothed values are rounded to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...calibrate.observers.smoothed import Scaling
from ...calibrate.statistics import TensorStats
from ...numerics.parts import parts
from ..groups import InputGroup, Readers

Array = NDArray[np.float64]

# A range is one-sided when its short side is below this share of the long one (SiLU: -0.28 to 6).
ONE_SIDED = 0.5
# What `predicted_scale` tries: exponents, and caps as shares of the largest smoothed channel.
EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7)
CAPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
NEAR = 1e-9  # share of the least error that the rounding of its parts cannot reach: it is 1e-15
CACHED = 2**18  # weights whose products stay in a processor's cache


@dataclass(frozen=True, slots=True)
class Way:
    """Say how channels are scaled: not, by SmoothQuant's exponent, by least predicted error or GPS.

    `centered` subtracts the middle of each channel's range first. GPS needs a run of the samples,
    and is fitted by `scaling.gps`.
    """

    scales: Literal["predicted", "gps"] | float | None
    centered: bool = False

    def fit(self, stats: TensorStats, readers: Readers, bits: tuple[int, int]) -> Scaling:
        """Fit scales to the ranges of a tensor; `bits` are those of activation and weight.

        A tensor that had no element in any sample, such as an empty cache, is left as it is.
        """
        assert self.scales != "gps"
        if not np.any(stats.count):
            return Scaling(np.ones_like(stats.low), None)
        center = centers(stats) if self.centered else None
        if self.scales is None:
            return Scaling(np.ones_like(stats.low), center)
        if self.scales == "predicted":
            return Scaling(predicted_scale(stats, readers, bits, centered=self.centered), center)
        scale = smoothing_scale(stats, readers.absmax, self.scales, centered=self.centered)
        return Scaling(scale, center)


def smoothing_scale(
    stats: TensorStats, weight_absmax: Array, alpha: float, *, centered: bool = False
) -> Array:
    """Return SmoothQuant s_i = max|X_i|^alpha / max|W_i|^(1-alpha) (arXiv 2211.10438, eq. 4).

    Where channels are `centered`, ``max|X_i|`` is half the channel's range. Arguments and result
    [C]; normalised to geometric mean 1; dead channels get 1.
    """
    reach = reach_of(stats, centered=centered)
    alive = (reach > 0) & (weight_absmax > 0)
    scale = np.ones_like(reach)
    scale[alive] = reach[alive] ** alpha / weight_absmax[alive] ** (1 - alpha)
    if alive.any():
        scale[alive] /= np.exp(np.mean(np.log(scale[alive])))
    return scale


def reach_of(stats: TensorStats, *, centered: bool) -> Array:
    """Return the absmax of each channel, or half its range where it is `centered`, [C]."""
    return half_range(stats) if centered else np.maximum(np.abs(stats.low), np.abs(stats.high))


def half_range(stats: TensorStats) -> Array:
    """Return half the width of each channel's range, [C]."""
    return (stats.high - stats.low) / 2


def centers(stats: TensorStats) -> Array:
    """Return the middle of each channel's range, [C]."""
    return (stats.high + stats.low) / 2


def predicted_scale(
    stats: TensorStats, readers: Readers, bits: tuple[int, int], *, centered: bool
) -> Array:
    """Return the scales of least predicted error of the products, [C].

    Candidates are SmoothQuant's scales for several exponents, each also with the largest smoothed
    channels capped: few channels set the step of the whole tensor, and widening their scale alone
    costs the weights little. `bits` are those of activation and weight.

    The largest products of a capped scale are those of one of its two parts, but for rounding. So
    errors are found without a pass over the weights each, and the least ones in full.
    """
    reach = reach_of(stats, centered=centered)
    bases = [smoothing_scale(stats, readers.absmax, a, centered=centered) for a in EXPONENTS]
    *of_bases, of_reach = zip(
        *(largest_products(peak, [*bases, reach]) for peak in readers.peaks), strict=True
    )
    scales: list[Array] = []
    rough: list[float] = []
    for base, tops in zip(bases, of_bases, strict=True):
        largest = float((reach / base).max())
        for cap in CAPS if largest > 0 else (1.0,):
            scale, capped = base, list(tops)
            if largest > 0:
                scale = np.maximum(base, reach / (largest * cap))
                pairs = zip(tops, of_reach, strict=True)
                capped = [np.maximum(top, other / (largest * cap)) for top, other in pairs]
            scales.append(scale)
            rough.append(rounding_error(stats, readers, scale, capped, bits, centered=centered))
    least, best = np.inf, np.ones_like(reach)
    limit = np.fmin.reduce(rough) * (1 + NEAR)
    for scale, about in zip(scales, rough, strict=True):
        again = least < np.inf and np.array_equal(scale, best)
        if about <= limit and not again:
            error = predicted_error(stats, readers, scale, bits, centered=centered)
            if error < least:
                least, best = error, scale
    return best


def predicted_error(
    stats: TensorStats, readers: Readers, scale: Array, bits: tuple[int, int], *, centered: bool
) -> float:
    """Return the expected squared error of the readers' outputs, roundings as uniform noise.

    With a step d of the input and D_o of output channel o of the weight:
    d^2/12 sum_i s_i^2 |W_i|^2 + sum_o D_o^2/12 sum_i E[x_i^2]/s_i^2 taps, the two terms whose
    ratio GPS balances channel by channel (PTQ4ARVG, eq. 8).
    """
    tops = [largest_products(peak, [scale])[0] for peak in readers.peaks]
    return rounding_error(stats, readers, scale, tops, bits, centered=centered)


def largest_products(weight: NDArray[np.floating], scales: Sequence[Array]) -> Array:
    """Return max_i |W_oi| s_i of a weight [O, C] for each of the scales [C], [scales, O]."""
    found = np.empty((len(scales), len(weight)))
    for part in parts(weight, CACHED):
        rows = np.abs(np.ascontiguousarray(weight[part])).astype(np.float64)
        products = np.empty_like(rows)
        for k, scale in enumerate(scales):
            np.multiply(rows, scale, out=products)
            products.max(axis=1, out=found[k, part])
    return found


def rounding_error(
    stats: TensorStats,
    readers: Readers,
    scale: Array,
    tops: Sequence[Array],
    bits: tuple[int, int],
    *,
    centered: bool,
) -> float:
    """Return what `predicted_error` does, from the largest scaled weight of each output, [O]."""
    if centered:
        width = 2 * float((half_range(stats) / scale).max())
    else:
        low = min(0.0, float(np.min(stats.low / scale)))
        high = max(0.0, float(np.max(stats.high / scale)))
        short, long = sorted((-low, high))
        width = high - low if short < ONE_SIDED * long else 2 * long
    step = width / (2 ** bits[0] - 1)
    error = float(step**2 / 12 * np.sum(scale**2 * readers.energy))
    signal = float(np.sum(stats.mean_square / scale**2))
    for top, taps in zip(tops, readers.taps, strict=True):
        steps = top / (2 ** (bits[1] - 1) - 1)
        error += float(np.sum(steps**2)) / 12 * taps * signal
    return error


def way_of(group: InputGroup, ways: Mapping[str, Way]) -> Way:
    """Return how a group is scaled, by `ways` where its plan says "search".

    A plan that has a scale also says whether channels are centred. GPS centres them, as published,
    where the producer takes that for free.
    """
    if group.key in ways:
        return ways[group.key]
    smoothing = group.entry.smoothing
    assert smoothing != "search"
    if group.activation.scale is None:
        free = group.subtracts and group.activation.grid == "uniform"
        return Way(smoothing, centered=smoothing == "gps" and free)
    return Way(smoothing, centered=group.activation.centered)
