"""Per-channel smoothing of a site's input, and the grid its smoothed values are rounded to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .observers import ClipCandidate
from .statistics import TensorStats

Array = NDArray[np.float64]

CLIP_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# A range is one-sided when its short side is below this share of the long one (SiLU: -0.28 to 6).
ONE_SIDED = 0.5


def smoothing_scale(stats: TensorStats, weight_absmax: Array, alpha: float) -> Array:
    """SmoothQuant s_i = max|X_i|^alpha / max|W_i|^(1-alpha) (arXiv 2211.10438, eq. 4).

    ``max|X_i|`` is half the channel's range, since the grid is shifted to its centre where that
    helps. Arguments and result [C]; normalised to geometric mean 1; dead channels get 1.
    """
    reach = (stats.high - stats.low) / 2
    alive = (reach > 0) & (weight_absmax > 0)
    scale = np.ones_like(reach)
    scale[alive] = reach[alive] ** alpha / weight_absmax[alive] ** (1 - alpha)
    if alive.any():
        scale[alive] /= np.exp(np.mean(np.log(scale[alive])))
    return scale


def clip_candidates(
    stats: TensorStats,
    smoothing: Array,
    bits: int,
    *,
    allow_shift: bool,
    fractions: Sequence[float] = CLIP_FRACTIONS,
) -> list[ClipCandidate]:
    """Grids whose range is a fraction of what was seen; the short side is never clipped.

    Zero is always in the range, since convolutions pad with it.

    A one-sided range gets an integer ``shift`` (the lowest grid point at its lower end), so that
    all 2^bits levels are used; a two-sided one is symmetric.
    """
    low = min(0.0, float(np.min(stats.low / smoothing)))
    high = max(0.0, float(np.max(stats.high / smoothing)))
    levels = 2**bits
    grids = []
    for fraction in fractions:
        short, long = sorted((abs(low), abs(high)))
        reach = max(long * fraction, 1e-12)
        if allow_shift and short < ONE_SIDED * reach:
            low_k, high_k = (low, reach) if high >= -low else (-reach, high)
            scale = (high_k - low_k) / (levels - 1)
            shift = round(low_k / scale) + levels // 2
        else:
            # The negative side of the grid has one step more than the positive.
            scale = max(reach / (levels // 2 - 1), 1e-12)
            shift = 0
        grids.append(
            ClipCandidate(
                smoothing=smoothing.astype(np.float32),
                scale=float(np.float32(scale)),
                shift=shift,
                bits=bits,
            )
        )
    return grids


def best_candidate(errors: Sequence[Array], gain: Array, power: int) -> int:
    """Index of the grid with the least error, each channel weighted by its gain in the product.

    `errors[k]` [C] holds sums of |error|**power in units of the smoothed tensor; `gain` [C] is the
    norm of the smoothed weights of that input channel, sqrt(sum_o W_oi^2).
    """
    return int(np.argmin([float(np.sum(error * gain**power)) for error in errors]))
