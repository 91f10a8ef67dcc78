"""Search the range of a weight's grid, and of the logarithmic one its smallest magnitude.

By squared error on a histogram of |w|, optionally weighted by the mean square of the input channel
that each weight multiplies; uniform grids of more bits once more by measured errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .blockwise import LEAST_WEIGHT
from .clipping import least

BINS = 1024
UNIFORM_FRACTIONS = np.geomspace(0.12, 1.0, 40)
LOG_FRACTIONS = np.geomspace(0.15, 1.0, 24)
LOG_SPANS = np.geomspace(1e-4, 0.7, 28)
# Around the histogram's choice, of errors that are measured. With 8 bits weights of the minis gain
# 0.2 dB (0.14 to 0.32 by model, single ones up to 1.4), with 6 bits 0.12 to 0.32, with 4 bits 0.04:
# a step of 5.6 % between two fractions is 0.5 dB where nothing is clipped. Outputs of five minis:
# of weights alone -1.2 to +1.6 dB, 0.3 on average; with inputs of 6 or 8 bits within 0.4 dB, -0.05.
NEARBY_FRACTIONS = np.linspace(0.94, 1.06, 13)
NEARBY_BITS = 5
CHUNK = 2**20  # weights whose errors are measured at once


def row_tops(parts: Iterable[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return max |w| of each group, [G], of parts of them [g, M].

    A group of zeros gets the median of the others.
    """
    tops = [np.maximum(rows.max(axis=1), -rows.min(axis=1)) for rows in parts]
    top: NDArray[np.float64] = np.concatenate(tops).astype(np.float64)
    dead = top < LEAST_WEIGHT
    top[dead] = np.median(top[~dead]) if not dead.all() else 1.0
    return top


def magnitude_histogram(
    rows: NDArray[np.float64],
    importance: NDArray[np.float64] | None,
    top: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (weighted) counts of |w| / `top` [G] per group, [G, BINS]."""
    magnitude = np.abs(rows)
    bins = np.minimum((magnitude / top[:, None] * BINS).astype(np.int64), BINS - 1)
    bins += np.arange(len(rows))[:, None] * BINS
    weights = None
    if importance is not None:
        held = np.empty_like(bins, np.float64)
        held[...] = importance
        weights = held.ravel(order="K")
    # Counted as they lie in memory: linears are held transposed.
    counts = np.bincount(bins.ravel(order="K"), weights, minlength=len(rows) * BINS)
    return counts.reshape(len(rows), BINS).astype(np.float64)


def search_uniform(histogram: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the clip with the least squared error, as a share of max|w|, [G]."""
    centres = (np.arange(BINS) + 0.5) / BINS
    steps = UNIFORM_FRACTIONS[:, None] / n
    rounded = np.minimum(np.round(centres / steps), n) * steps
    errors = histogram @ np.square(rounded - centres).T
    return np.asarray(UNIFORM_FRACTIONS[least(errors, axis=1)])


def refine_uniform(
    rows: NDArray[np.float64],
    importance: NDArray[np.float64] | None,
    top: NDArray[np.float64],
    fraction: NDArray[np.float64],
    n: int,
) -> NDArray[np.float64]:
    """Return `fraction` [G] times that of `NEARBY_FRACTIONS` with the least measured error.

    `top` [G] are the largest magnitudes of what `rows` [G, M] are all or some of.
    """
    refined: NDArray[np.float64] = fraction.copy()
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        unit = (rows[part] * (n / (top[part] * fraction[part]))[:, None]).astype(np.float32)
        gain = None if importance is None else importance[part]
        errors = []
        for nearby in NEARBY_FRACTIONS.astype(np.float32):
            error = np.clip(np.rint(unit / nearby), -n, n)
            error *= nearby
            error -= unit
            np.square(error, out=error)
            errors.append(error.sum(axis=1) if gain is None else np.einsum("ij,ij->i", error, gain))
        refined[part] *= NEARBY_FRACTIONS[least(errors)]
    return refined


def log_ratios(n: int) -> Sequence[float]:
    """Return the ratios of neighbouring magnitudes to try, for n magnitudes."""
    return [float(span ** (1 / (n - 1))) for span in LOG_SPANS] if n > 1 else [1.0]


def search_log(
    histogram: NDArray[np.float64], n: int, ratios: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest magnitude as a share of max|w| and the ratio of neighbours, [G] each."""
    centres = (np.arange(BINS) + 0.5) / BINS
    choices, errors = [], []
    for fraction in LOG_FRACTIONS:
        for ratio in ratios:
            levels = np.concatenate([[0.0], fraction * ratio ** np.arange(n - 1, -1, -1)])
            nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, centres)
            choices.append((fraction, ratio))
            errors.append(histogram @ np.square(levels[nearest] - centres))
    best = np.array(choices)[least(errors)]
    return best[:, 0], best[:, 1]
