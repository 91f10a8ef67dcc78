"""Describe a figure as a function of what each sample adds, so that samples can be drawn again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # columns [K, ..., N] of samples -> figures [...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Hold columns [K, N] of N samples, and the figure that they make.

    A NaN says that a sample is left out, since its decibels are infinite. ``least`` and ``most``
    bound the figure. A ``share`` has two columns, hits and trials. ``smooth`` is False for medians,
    which move in steps. ``percent`` is that of a percentile of one column, which has an interval of
    its own. ``noun`` is a sample in words, in the plural.
    """

    columns: Floats
    statistic: Statistic
    least: float = -math.inf
    most: float = math.inf
    share: bool = False
    smooth: bool = True
    percent: float | None = None
    noun: str = "samples"

    @property
    def used(self) -> NDArray[np.bool_]:
        """Return which samples count, [N]."""
        used: NDArray[np.bool_] = np.isfinite(self.columns.sum(axis=0))
        return used

    @property
    def counted(self) -> Floats:
        """Return the columns of the samples that count."""
        return self.columns[:, self.used]


def mean(
    values: Sequence[float | None], *, least: float = -math.inf, most: float = math.inf
) -> Sampled:
    """Return the mean of a number a sample; None, infinite decibels, is left out."""
    columns = np.array([[math.nan if v is None else v for v in values]], np.float64)
    return Sampled(columns, lambda c: c[0].mean(axis=-1), least=least, most=most)


def ratio(parts: Sequence[float], wholes: Sequence[float], *, least: float = -math.inf) -> Sampled:
    """Return the sum of `parts` over that of `wholes`."""
    return Sampled(np.array([parts, wholes], np.float64), over, least=least)


def share(hits: Sequence[float], trials: Sequence[float]) -> Sampled:
    """Return the share of `hits` among `trials`, each a number a sample."""
    columns = np.array([hits, trials], np.float64)
    return Sampled(columns, over, least=0.0, most=1.0, share=True)


def sqnr(signal: Sequence[float], noise: Sequence[float]) -> Sampled:
    """Return 10 log10 of the sum of `signal` over that of `noise`, in dB."""
    return Sampled(np.array([signal, noise], np.float64), decibels_of)


def median(values: Sequence[float], *, noun: str = "samples") -> Sampled:
    return Sampled(
        np.array([values], np.float64), lambda c: median_of(c[0]), smooth=False, noun=noun
    )


def percentile(values: Sequence[float], percent: float, *, noun: str = "samples") -> Sampled:
    """Return a percentile, whose interval lies between two of the samples."""
    return Sampled(
        np.array([values], np.float64),
        lambda c: np.percentile(c[0], percent, axis=-1),
        smooth=False,
        percent=percent,
        noun=noun,
    )


def ratio_of_medians(reference: Sequence[float], own: Sequence[float]) -> Sampled:
    """Return the median of `reference` over that of `own`, of rounds that were timed in turn."""
    columns = np.array([reference, own], np.float64)

    def figure(columns: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return median_of(columns[0]) / median_of(columns[1])

    return Sampled(columns, figure, least=0.0, smooth=False, noun="rounds")


def over(columns: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = columns[0].sum(axis=-1) / columns[1].sum(axis=-1)
    return found


def decibels_of(columns: Floats) -> Floats:
    """Return decibels of a signal and its noise; infinite where there is no noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = 10 * np.log10(over(columns))
    return found


def median_of(values: Floats) -> Floats:
    found: Floats = np.median(values, axis=-1)
    return found
