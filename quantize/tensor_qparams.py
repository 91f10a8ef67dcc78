"""Find what an input may be rounded to with one scale per tensor, from the ranges seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..calibrate.observers.smoothed import Scaling
from ..calibrate.statistics import TensorStats
from ..numerics.clipping import least
from ..numerics.qparams import QParams
from ..numerics.weight import FP8_MAX
from ..recipe.quantize import QuantizeOptions
from .groups import InputGroup
from .scaling.predicted import ONE_SIDED, half_range

Floats = NDArray[np.float64]
CLIP_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def tensor_candidates(
    group: InputGroup, scaling: Scaling, options: QuantizeOptions
) -> list[QParams]:
    """Return what a group's scaled input may be rounded to per tensor; the first is not clipped."""
    wanted, stats = group.activation, group.stats
    if wanted.scale is not None:
        return [QParams.from_format(wanted)]
    if wanted.grid == "fp8":
        return [fp8_qparams(stats, scaling)]
    found = clip_candidates(stats, scaling, wanted.bits, allow_shift=options.shift)
    return found if options.clip_power != 0 else found[:1]


def fp8_qparams(stats: TensorStats, scaling: Scaling) -> QParams:
    """Return those that put the largest value seen on the largest number."""
    reach = float(np.max(np.maximum(-stats.low, stats.high) / scaling.smoothing))
    scale = float(np.float32(max(reach, 1e-12) / FP8_MAX))
    return QParams.symmetric(np.array([scale]), 8, "fp8")


def clip_candidates(
    stats: TensorStats,
    scaling: Scaling,
    bits: int,
    *,
    allow_shift: bool,
    fractions: Sequence[float] = CLIP_FRACTIONS,
) -> list[QParams]:
    """Return scales whose range is a fraction of what was seen; the short side is never clipped.

    Zero is in the range, except where channels are centred on ranges without it.

    A one-sided range gets a zero point (the least number at its lower end), so that
    all 2^bits levels are used; a two-sided one, and one with centred channels, is symmetric.
    """
    smoothing, center = scaling.smoothing, scaling.center
    if center is None:
        low = min(0.0, float(np.min(stats.low / smoothing)))
        high = max(0.0, float(np.max(stats.high / smoothing)))
    else:
        high = float(np.max(half_range(stats) / smoothing))
        low = -high
    levels = 2**bits
    found = []
    for fraction in fractions:
        short, long = sorted((abs(low), abs(high)))
        reach = max(long * fraction, 1e-12)
        if allow_shift and center is None and short < ONE_SIDED * reach:
            low_k, high_k = (low, reach) if high >= -low else (-reach, high)
            scale = (high_k - low_k) / (levels - 1)
            zero_point = -round(low_k / scale) - levels // 2
        else:
            # The negative side has one number more than the positive.
            scale = max(reach / (levels // 2 - 1), 1e-12)
            zero_point = 0
        rounded = np.array([float(np.float32(scale))])
        found.append(QParams(rounded, np.array([zero_point]), bits))
    return found


def best_candidate(errors: Sequence[Floats], gain: Floats, power: int) -> int:
    """Return the index of the least error, each channel weighted by its gain in the product.

    `errors[k]` [C] holds sums of |error|**power in units of the smoothed tensor; `gain` [C] is the
    norm of the smoothed weights of that input channel, sqrt(sum_o W_oi^2).
    """
    return int(least([float(np.sum(error * gain**power)) for error in errors]))
