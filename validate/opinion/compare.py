"""Compare the outputs of two ways of running a graph, over several runs on the same feeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ...numerics.noise import SignalAndNoise
from ..metrics.image import none_if_infinite
from .facts import TORCH_ERROR, TORCH_TOKENS, FigureOpinion, Way

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


def largest_errors(ours: Sequence[Arrays], theirs: Sequence[Arrays]) -> tuple[float, float, float]:
    """Return the largest difference, the largest over its output's RMS, and the least equal share.

    Outputs of floats make the first two, those of integers the last: 0, 0 and 1 without any.
    A value that is NaN, or infinite on one side alone, makes an infinite difference.
    """
    largest = relative = 0.0
    equal = 1.0
    for name in ours[0]:
        pairs = [
            (np.asarray(a[name]), np.asarray(b[name])) for a, b in zip(ours, theirs, strict=True)
        ]
        for a, b in pairs:
            if a.shape != b.shape:
                raise AccuracyError(
                    f"{name} is {list(b.shape)} where ours is {list(a.shape)}",
                    do="run both on the same graph",
                )
        if np.issubdtype(pairs[0][0].dtype, np.integer):
            same, count = (
                sum(int(np.count_nonzero(a == b)) for a, b in pairs),
                sum(a.size for a, _ in pairs),
            )
            equal = min(equal, same / count if count else 1.0)
            continue
        wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
        error = max((largest_difference(a, b) for a, b in wide if a.size), default=0.0)
        energy = sum(float(np.square(b[np.isfinite(b)]).sum()) for _, b in wide)
        rms = math.sqrt(energy / max(1, sum(b.size for _, b in wide)))
        largest, relative = max(largest, error), max(relative, error / (rms or 1.0))
    return largest, relative, equal


def largest_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest |a - b|; equal infinities differ by nothing, NaN by infinity."""
    with np.errstate(invalid="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def finite(value: float) -> float | None:
    """Return a difference as JSON holds it: None where it is not finite."""
    return value if math.isfinite(value) else None


def torch_agrees(relative: float, equal: float) -> bool:
    """Return whether PyTorch's outputs are FP32's, within the limits for it."""
    return relative <= TORCH_ERROR and equal >= TORCH_TOKENS


def figure_opinions(
    graph: str,
    by: Way,
    ours: tuple[Sequence[Arrays], Sequence[Arrays]],
    theirs: tuple[Sequence[Arrays], Sequence[Arrays]],
) -> list[FigureOpinion]:
    """Return the SQNR of a Q/DQ graph against FP32, of our outputs and theirs: (FP32, Q/DQ) each.

    Outputs of integers have none. Nor have those that are not finite, which is an error elsewhere.
    """
    found = []
    for output, value in ours[0][0].items():
        if np.issubdtype(np.asarray(value).dtype, np.integer):
            continue
        pairs = [(fp32, qdq, output) for fp32, qdq in (ours, theirs)]
        if not all(np.isfinite(run[output]).all() for side in (*ours, *theirs) for run in side):
            continue
        first, second = (_sqnr(*pair) for pair in pairs)
        found.append(
            FigureOpinion(
                graph=graph,
                output=output,
                by=by,
                ours_db=first,
                theirs_db=second,
                samples=len(ours[0]),
            )
        )
    return found


def _sqnr(fp32: Sequence[Arrays], qdq: Sequence[Arrays], output: str) -> float | None:
    total = SignalAndNoise()
    for exact, value in zip(fp32, qdq, strict=True):
        total.add(np.asarray(exact[output]), np.asarray(value[output]))
    return none_if_infinite(total.decibels())
