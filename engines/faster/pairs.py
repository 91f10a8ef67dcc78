"""Judge by pairs of times, taken in turn, by which factor one program is faster than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
# Of fewer pairs not even the smallest and the largest hold the median with that probability.
LEAST_PAIRS = 6
PairVerdict = Literal["kept", "removed", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Hold times in ms of two programs that ran in turn; times of one place belong together."""

    plain: tuple[float, ...]
    quantized: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.plain) != len(self.quantized) or not self.plain:
            raise ValueError(f"{len(self.plain)} and {len(self.quantized)} times make no pairs")

    def __add__(self, other: Pairs) -> Pairs:
        """Return the pairs of both, as if they had been timed at once."""
        return Pairs(self.plain + other.plain, self.quantized + other.quantized)

    def __len__(self) -> int:
        return len(self.plain)

    @property
    def medians(self) -> tuple[float, float]:
        """Return the median of each program, in ms."""
        return float(np.median(self.plain)), float(np.median(self.quantized))

    @property
    def total_ms(self) -> float:
        return sum(self.plain) + sum(self.quantized)

    @property
    def speed(self) -> PairedSpeed:
        """Return how many times faster the quantized program is: the median over the pairs."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.array(self.plain) / np.array(self.quantized)
        low, high = median_interval(ratios)
        return PairedSpeed(float(np.median(ratios)), low, high)


@dataclass(frozen=True, slots=True)
class PairedSpeed:
    """Hold a median of ratios and its interval; with too few pairs that is 0 to infinity."""

    ratio: float
    low: float
    high: float

    def verdict(self, factor: float) -> PairVerdict:
        """Return "kept" if it is proved to be more than a factor, "removed" if less."""
        if self.low > factor:
            return "kept"
        return "removed" if self.high < factor else "inconclusive"


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return two of the values that have the median between them with 95 %, or 0 and infinity.

    Whatever the values are distributed like: how many lie below the median is like tosses of a
    coin, so that outliers, as a machine with other work has, move neither end.
    """
    count = len(values)
    if count < LEAST_PAIRS:
        return 0.0, float("inf")
    outside, rank = 0, 0
    while 2 * (outside + comb(count, rank)) <= (1 - LEVEL) * 2**count:
        outside += comb(count, rank)
        rank += 1
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[rank - 1]), float(ordered[count - rank])
