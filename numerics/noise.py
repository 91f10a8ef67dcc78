"""Compute signal to noise ratios in decibels; this is the only place with the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AccuracyError, CalibrationError
from .parts import Weight, parts

LEAST_SQUARES = 1e-30


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    ratio = signal / noise
    if ratio > 0:
        return 10 * math.log10(ratio)
    return math.nan if math.isnan(ratio) else -math.inf


def rounding_sqnr_db(signal: float, noise: float) -> float:
    """Return the SQNR of a rounding in dB, always finite.

    A tensor of zeros that stay zeros counts as one of ones.

    Raises:
        CalibrationError: sums of squares that are not finite.
    """
    if not (signal < np.inf and noise < np.inf):
        raise CalibrationError(
            f"a rounding error of {noise:g} beside a signal of {signal:g} says nothing",
            do="look for NaN, infinity or values beyond 1e18 in the weights and the samples",
        )
    if signal == 0 == noise:
        signal = 1.0
    return decibels(max(signal, LEAST_SQUARES), max(noise, LEAST_SQUARES))


def rounding_noise_db(exact: Weight, rounded: Callable[[slice], NDArray[np.floating]]) -> float:
    """Return the SQNR in dB of `exact` after rounding; `rounded` returns rows of the result."""
    signal = noise = 0.0
    for part in parts(exact):
        wide = exact[part].astype(np.float64)
        error = rounded(part).astype(np.float64) - wide
        signal, noise = signal + float(np.sum(wide**2)), noise + float(np.sum(error**2))
    return rounding_sqnr_db(signal, noise)


class SignalAndNoise:
    """Add up squares of a signal and of its error, in float64, over any number of arrays."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def add(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add two arrays of one shape; `decibels` refuses what is not finite in either."""
        exact = reference.astype(np.float64)
        self.signal += float(np.sum(np.square(exact)))
        self.noise += float(np.sum(np.square(exact - value.astype(np.float64))))

    def decibels(self) -> float:
        """Return the signal to noise ratio in dB; infinite where there is no error at all.

        Raises:
            AccuracyError: values that are not finite, or a reference of zeros with an error.
        """
        if not (math.isfinite(self.signal) and math.isfinite(self.noise)):
            raise AccuracyError(
                "values that are compared are not finite",
                do="look for overflow; keep the suspect sites in high precision",
            )
        if self.signal == 0 != self.noise:
            raise AccuracyError(
                "the reference is zero everywhere: no signal to compare the error with",
                do="check the FP32 graph and the images",
            )
        return decibels(self.signal, self.noise)


def sqnr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - value)^2)) in dB; inf if they are equal.

    Raises:
        AccuracyError: values that are not finite, or a reference of zeros with an error.
    """
    sums = SignalAndNoise()
    sums.add(reference, value)
    return sums.decibels()


def masked_sqnr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Return the SQNR in dB of the finite values; NaN where they are not finite in the same places.

    A mask's -inf is compared by its place alone.
    """
    wide, other = reference.astype(np.float64), value.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
        return math.nan
    signal = float(np.square(wide[finite]).sum())
    noise = float(np.square(wide[finite] - other[finite]).sum())
    return decibels(signal, noise) if noise < math.inf else math.nan
