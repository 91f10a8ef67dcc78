"""Say how far quantized values are from FP32's: all samples together, and a typical one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

# Share of the mean below which a sample counts as much as at it: silence has no signal, no error.
SILENT = 1e-6


@dataclass(frozen=True, slots=True)
class Off:
    """Hold how far values are off: the mean over samples, and the geometric mean of samples.

    A few samples with large values decide the first, and the others the second.
    """

    mean: float
    typical: float


EVERYTHING = Off(math.inf, math.inf)


def off_of(errors: Sequence[float] | NDArray[np.float64]) -> Off:
    """Return both means of what samples are off, from 0 up; NaN where one is."""
    values = np.asarray(errors, np.float64)
    mean = float(values.mean()) if values.size else 0.0
    if not 0 < mean < math.inf:
        return Off(mean, mean)
    logarithms = np.log(np.maximum(values, mean * SILENT))
    return Off(mean, float(np.exp(logarithms.mean())))


@dataclass(frozen=True, slots=True)
class Loss:
    """Hold a candidate's error over that without scaling, from its errors on some halves.

    `worst` is that of all samples on the half where it gains least. Where one of few samples lies
    outside the range of the others, it is most of that sum however channels are scaled: of
    cosmos-di8x8 at real width, calibrated on 8 images, it hid 5 dB. `typical` has no such sample:
    it is the worse of what a typical sample and of what all samples have in the mean over the
    halves, and infinite where a typical sample of one half loses. By typical samples alone a
    candidate may lose on rare large values, 2 dB of all that heavy-tailed rows are off.
    """

    worst: float
    typical: float


def loss(found: Sequence[Off], none: Sequence[Off]) -> Loss:
    """Compare a candidate's errors on each half with those without scaling; NaN is infinite."""
    pairs = list(zip(found, none, strict=True))
    typical = [ratio(one.typical, other.typical) for one, other in pairs]
    means = [ratio(one.mean, other.mean) for one, other in pairs]
    lost = max(typical) >= 1
    return Loss(max(means), math.inf if lost else max(geometric(typical), geometric(means)))


def best(losses: Mapping[int, Loss], gain_db: float) -> int | None:
    """Return the candidate that is best on its worst half; None if none gains so many decibels.

    Where none gains there, it is the one that is best by what is typical.
    """
    least = 10 ** (-gain_db / 10)
    by_worst = {k: each.worst for k, each in losses.items() if each.worst < least}
    able = by_worst or {k: each.typical for k, each in losses.items() if each.typical < least}
    return min(able, key=lambda k: able[k], default=None)


def geometric(ratios: Sequence[float]) -> float:
    """Return the geometric mean of ratios; nothing at all counts as `SILENT`."""
    return math.exp(sum(math.log(max(each, SILENT)) for each in ratios) / len(ratios))


def ratio(error: float, none: float) -> float:
    """Divide an error by that without scaling; two of nothing are equal, NaN is the worst."""
    if not error < math.inf:
        return math.inf
    if none > 0:
        return error / none
    return 1.0 if error == 0 else math.inf


def distance(found: Mapping[str, list[Array]], exact: Mapping[str, list[Array]]) -> Off:
    """Return the error over the signal, summed over float outputs.

    The mean is that of all samples together; of integers it is the share that differs, and the
    only one.
    """
    floats = [n for n, v in exact.items() if np.issubdtype(v[0].dtype, np.floating)]
    if not floats:
        share = sum(share_off(found[name], exact[name]) for name in exact)
        return Off(share, share)
    samples, total = np.zeros(len(exact[floats[0]])), 0.0
    for name in floats:
        # Where FP32 is infinite, as behind a mask, there is nothing to be off.
        pairs = [
            (
                one[np.isfinite(other)].astype(np.float64),
                other[np.isfinite(other)].astype(np.float64),
            )
            for one, other in zip(found[name], exact[name], strict=True)
        ]
        errors = np.array([np.sum(np.square(one - other)) for one, other in pairs])
        signals = np.array([np.sum(np.square(other)) for _, other in pairs])
        tiny = np.finfo(np.float64).tiny
        total += float(errors.sum()) / max(float(signals.sum()), tiny)
        samples += errors / np.maximum(signals, max(float(signals.mean()) * SILENT, tiny))
    return Off(total, off_of(samples).typical)


def share_off(found: list[Array], exact: list[Array]) -> float:
    """Return the share of elements that differ."""
    differ = sum(int(np.sum(one != other)) for one, other in zip(found, exact, strict=True))
    return differ / max(1, sum(other.size for other in exact))
