"""Grids of a site's input, one a position: steps, and shifts of one-sided ranges.

The paper's asymmetric grid clamp(round(x / d) + z, 0, 2^b - 1) has the points (k + n) d for
n = -2^(b-1) ... 2^(b-1) - 1 and k = 2^(b-1) - z: here k is the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scaling import ONE_SIDED
from .statistics import TensorStats
from .views import Grid

Floats = NDArray[np.float64]
# A position that calibration saw dead gets a share of the widest one's range: never a step of 0,
# and no factor that half precision cannot hold.
LEAST_REACH = 1e-4
SMALLEST = 1e-12
# Above 1: other samples reach further than those seen.
TOKEN_FRACTIONS = (1.15, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Few samples do not show how far a position can reach, all positions together do: each gets at
# least the reach over root mean square that this share of them stays below.
CREST_QUANTILE = 0.9
# A position takes its own clip where that lowers its error so much against the site's clip.
OWN_CLIP_GAIN = 0.8


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """What is deployed: `level` [T] is 1 in the median, `step` the scalar that engines take.

    A position's step is level * step; its lowest point is `shift` - 2^(bits-1) of them.
    """

    step: np.float32
    level: NDArray[np.float32]
    shift: NDArray[np.int64]
    bits: int

    @classmethod
    def of(cls, grid: Grid) -> TokenGrid:
        step = np.float32(np.median(grid.step))
        level = (grid.step / np.float64(step)).astype(np.float32)
        return cls(step, level, grid.shift, grid.bits)


def is_one_sided(low: Floats, high: Floats) -> bool:
    """Whether most positions' ranges reach less than half as far to one side as to the other."""
    short, long = np.minimum(-low, high), np.maximum(-low, high)
    alive = long > 0
    return bool(alive.any() and np.median(short[alive] / long[alive]) < ONE_SIDED)


def grid_candidates(
    ranges: TensorStats,
    bits: int,
    *,
    allow_shift: bool,
    fractions: Sequence[float] = TOKEN_FRACTIONS,
) -> list[Grid]:
    """Grids whose long side is a share of the positions' ranges [T]; the short is not clipped.

    Zero is in every range. One-sided ones get an integer shift, others are symmetric.
    """
    low, high = np.minimum(ranges.low, 0), np.maximum(ranges.high, 0)
    shifted = allow_shift and is_one_sided(low, high)
    reach = np.maximum(-low, high)
    reach = np.maximum(reach, usual_reach(ranges, reach))
    high, low = np.where(high >= -low, reach, high), np.where(high >= -low, low, -reach)
    floor = max(LEAST_REACH * float(reach.max()), SMALLEST)
    half = 2 ** (bits - 1)
    grids = []
    for fraction in fractions:
        long = np.maximum(reach * fraction, floor)
        if not shifted:
            # The negative side of the grid has one step more than the positive.
            grids.append(Grid(long / (half - 1), np.zeros(len(long), np.int64), bits))
            continue
        upward = high >= -low
        bottom, top = np.where(upward, np.maximum(low, -long), -long), np.where(upward, long, high)
        top = np.minimum(top, long)
        step = (top - bottom) / (2 * half - 1)
        grids.append(Grid(step, np.rint(bottom / step).astype(np.int64) + half, bits))
    return grids


def usual_reach(ranges: TensorStats, reach: Floats) -> Floats:
    """What the crest factors of all positions make of each one's root mean square, [T]."""
    rms = np.sqrt(ranges.square / max(1, ranges.count))
    alive = rms > 0
    if not alive.any():
        return np.zeros_like(rms)
    crest = float(np.quantile(reach[alive] / rms[alive], CREST_QUANTILE))
    usual: Floats = crest * rms
    return usual


def best_grid(candidates: Sequence[Grid], errors: Floats) -> tuple[Grid, NDArray[np.int64]]:
    """The clip of least error over all positions, or of a position that gains by its own.

    `errors` [candidates, T]; returns the grid, and which candidate each position takes.
    """
    scale = np.maximum(errors[0], SMALLEST)
    common = int(np.argmin((errors / scale).sum(axis=1)))
    own = np.argmin(errors, axis=0)
    at = np.arange(errors.shape[1])
    gains = errors[own, at] < OWN_CLIP_GAIN * errors[common]
    best = np.where(gains, own, common)
    step = np.stack([grid.step for grid in candidates])[best, at]
    shift = np.stack([grid.shift for grid in candidates])[best, at]
    return Grid(step, shift, candidates[0].bits), best
