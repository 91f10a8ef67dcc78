"""Find the interval of a percentile between two of the samples, in their order.

How many samples lie below the true percentile is binomial, whatever they are like. Few samples do
not bound a high percentile.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def percentile_ends(values: ArrayLike, percent: float, level: float) -> tuple[float, float] | None:
    """Return both ends of a percentile's interval; None if the samples do not bound it."""
    from scipy import stats

    ordered = np.sort(values)
    count, share, tail = len(ordered), percent / 100, (1 - level) / 2
    # As many of the samples lie below the true percentile as a binomial count says.
    low = int(stats.binom.ppf(tail, count, share))
    high = int(stats.binom.ppf(1 - tail, count, share)) + 1
    if low < 1 or high > count:
        return None
    return float(ordered[low - 1]), float(ordered[high - 1])


def samples_needed(percent: float, level: float) -> int:
    """Return how many samples bound a percentile from both sides."""
    share, tail = percent / 100, (1 - level) / 2
    return math.ceil(math.log(tail) / math.log(max(share, 1 - share)))
