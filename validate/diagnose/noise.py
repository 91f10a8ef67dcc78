"""Add up errors by where they lie: scales, positions or time steps of what a graph computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.sites import Site
from ...numerics.noise import decibels

Floats = NDArray[np.float64]
MOST_BUCKETS = 8


@dataclass(frozen=True, slots=True)
class Buckets:
    """Divide numbers from 0 into ranges with names, each from one of `starts` to the next."""

    names: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of_scales(cls, sides: Sequence[int]) -> Buckets:
        """Return a range for each scale of token maps with these sides, coarse to fine."""
        starts = [0, *accumulate(side * side for side in sides)][:-1]
        return cls(tuple(f"scale {side}x{side}" for side in sides), tuple(starts))

    @classmethod
    def of_range(cls, count: int, noun: str) -> Buckets:
        """Return at most eight ranges of the numbers below `count`, of about the same length."""
        edges = np.linspace(0, count, min(MOST_BUCKETS, max(count, 1)) + 1).round().astype(int)
        names = []
        for first, end in pairwise(edges):
            names.append(f"{noun} {first}" if end - first == 1 else f"{noun} {first}-{end - 1}")
        return cls(tuple(names), tuple(int(edge) for edge in edges[:-1]))

    def index(self, numbers: NDArray[Any]) -> NDArray[np.intp]:
        """Return the number of the range that each number lies in."""
        found: NDArray[np.intp] = np.searchsorted(self.starts, numbers, side="right") - 1
        return np.clip(found, 0, len(self.starts) - 1)


WHOLE = Buckets(("all",), (0,))


class BucketedNoise:
    """Add up squares of a signal and of its error by range, in float64."""

    def __init__(self, buckets: Buckets = WHOLE) -> None:
        self.buckets = buckets
        self.signal = np.zeros(len(buckets.names))
        self.noise = np.zeros(len(buckets.names))

    def add(
        self, signal: NDArray[Any], noise: NDArray[Any], numbers: NDArray[Any] | None = None
    ) -> None:
        """Add sums of squares of one shape; `numbers` broadcast to it (None: all are 0)."""
        placed = np.zeros(1, np.int64) if numbers is None else numbers
        index = np.broadcast_to(self.buckets.index(placed), signal.shape).ravel()
        for total, values in ((self.signal, signal), (self.noise, noise)):
            with np.errstate(invalid="ignore", over="ignore"):
                total += np.bincount(index, values.ravel().astype(np.float64), len(total))

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.signal).all() and np.isfinite(self.noise).all())

    @property
    def relative(self) -> float:
        """Return the noise as a share of the signal; infinite where either is not finite."""
        if not self.is_finite:
            return math.inf
        signal, noise = float(self.signal.sum()), float(self.noise.sum())
        return noise / signal if signal > 0 else (math.inf if noise > 0 else 0.0)

    def decibels(self) -> float | None:
        """Return the signal to noise ratio in dB; None without an error, -inf without a measure."""
        return level(float(self.signal.sum()), float(self.noise.sum()))

    def by_bucket(self) -> Mapping[str, float | None]:
        """Return the ratio in dB of each range with a signal."""
        found = zip(self.buckets.names, self.signal, self.noise, strict=True)
        return {name: level(float(s), float(n)) for name, s, n in found if s > 0 or n > 0}


def level(signal: float, noise: float) -> float | None:
    """Return a ratio in dB; None without noise, -inf where a sum is not finite."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    found = decibels(signal, noise)
    return None if found == math.inf else found


def buckets_of(site: Site, count: int | None, sides: Sequence[int]) -> Buckets:
    """Return how a site's rows are told apart; `count` are the positions where no number is known.

    `sides` are those of the token maps of a model that has scales.
    """
    if site.token_axis is None and site.position_input is None:
        return WHOLE
    if sides and site.token_axis is not None:
        return Buckets.of_scales(sides)
    known = site.positions or count
    if known is None:
        return WHOLE
    return Buckets.of_range(known, "step" if site.token_axis is None else "position")


def numbers_of(
    site: Site, values: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> NDArray[Any] | None:
    """Return the number of each row of a reduced output, which broadcasts to its `shape`.

    `values` has what the graph was fed or gives, by name.
    """
    if site.position_input is not None and site.position_input in values:
        found = values[site.position_input]
        fits = found.shape == shape or found.shape == shape[-1:]
        return found if fits else None
    if site.token_axis is not None and len(shape) == 2:
        return np.arange(shape[1])
    return None
