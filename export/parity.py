"""Measure how ONNX Runtime differs from PyTorch, and refuse too large differences."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ExportError
from .facts import Difference, TokenParity

# Relative to the RMS of the reference tensor. Float32 sums in another order stay below 3e-5 and
# 2e-6 on the published configurations; a wrong kernel or constant is off by orders more.
MAX_TOLERANCE = 5e-4
MEAN_TOLERANCE = 2e-5
LEAST_ERROR = 1e-6  # relative, of float32 convolutions; a smaller measured error is chance
ERRORS = 4  # a token may differ within this many measured errors of a boundary

Array = NDArray[np.generic]
Arrays = dict[str, Array]
Flags = NDArray[np.bool_]


class ErrorSum:
    """Keep the running max and mean of |a - b| relative to the RMS of b."""

    def __init__(self) -> None:
        self.max = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, value: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        wide = reference.astype(np.float64)
        rms = float(np.sqrt(np.mean(np.square(wide))))
        # A reference of zeros has no scale of its own.
        error = np.abs(value.astype(np.float64) - wide) / (rms or 1.0)
        self.max = float(np.maximum(self.max, error.max()))  # Python's max would lose a NaN
        self._sum += float(error.sum())
        self._count += error.size

    @property
    def mean(self) -> float:
        return self._sum / max(1, self._count)


def difference(
    graph: str,
    tensor: str,
    value: Array,
    reference: Array,
    tokens: int | None = None,
    cached: int | None = None,
) -> Difference:
    error = ErrorSum()
    error.add(rounded_alike(value, reference) if value.dtype == np.float16 else value, reference)
    return Difference(graph, tensor, error.max, error.mean, tokens, cached)


def rounded_alike(value: Array, reference: Array) -> Array:
    """Return float16 values, with the reference's where the two are neighbours.

    What lies between two numbers of float16 is rounded to either by the least float32 error.
    """
    a, b = value.astype(np.float32), reference.astype(np.float32)
    larger = np.maximum(np.abs(a), np.abs(b)).astype(np.float16)
    return np.where(np.abs(a - b) <= np.spacing(larger), reference, value)


def require(error: Difference) -> None:
    if error.max <= MAX_TOLERANCE and error.mean <= MEAN_TOLERANCE:
        return
    at = "" if error.tokens is None else f" at {error.tokens} tokens behind {error.past}"
    raise ExportError(
        f"{error.tensor} of ONNX Runtime differs from PyTorch by {error.max:.2e} at most and "
        f"{error.mean:.2e} on average{at} "
        f"(relative; allowed {MAX_TOLERANCE:.0e} and {MEAN_TOLERANCE:.0e})",
        where=f"{error.graph}.onnx",
        do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
    )


def require_tokens(parity: TokenParity) -> None:
    if parity.differ > parity.at_boundary:
        raise ExportError(
            f"{parity.differ - parity.at_boundary} of {parity.tokens} tokens differ from PyTorch "
            "away from any boundary between two codes",
            where="encoder.onnx",
            do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
        )


def code_distance(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return how far each vector may move without changing its nearest code.

    The shapes are [..., C], [V, C] -> [...].
    """
    vectors, codebook = vectors.double(), codebook.double()
    scores = vectors @ codebook.T - 0.5 * codebook.square().sum(dim=1)
    best, nearest = scores.max(dim=-1, keepdim=True)
    apart = torch.cdist(codebook[nearest.squeeze(-1)], codebook)
    # The distance to the nearest of the planes between the nearest code and every other one.
    distances = (best - scores) / apart.clamp_min(torch.finfo().tiny)
    distances.scatter_(-1, nearest, torch.inf)
    closest: Tensor = distances.amin(dim=-1)
    return closest.float()


def near_boundary(
    distances: NDArray[np.float32], latent: NDArray[np.float32], error: float
) -> Flags:
    """Return which tokens' vectors lie within float error of another code's region.

    `distances` are those of `code_distance`; `error` is the largest of `latent` [N, C, h, w],
    relative to its RMS. A vector of C such errors is sqrt(C) times as long.
    """
    near: Flags = distances < vector_error(latent, error, latent.shape[1])
    return near


def vector_error(latent: NDArray[np.float32], error: float, channels: int) -> float:
    """Return how far a vector of so many channels of `latent` may have moved."""
    rms = float(np.sqrt(np.mean(np.square(latent, dtype=np.float64))))
    return ERRORS * max(error, LEAST_ERROR) * rms * math.sqrt(channels)
