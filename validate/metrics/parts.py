"""Find the part of an output whose error the rest of it hides: channels of another scale.

A detector gives boxes of hundreds beside scores below 1 in one array: its SQNR is that of the
boxes. So channels are sorted by their RMS, and cut where one is `GAP` times the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...numerics.noise import decibels
from .image import decibels as stored_decibels
from .image import none_if_infinite

GAP = 10.0
MOST_CHANNELS = 4096  # of an axis that is looked at: what is kept does not grow with samples
# Where channels vary by less than this share of their energy, their SQNR is that of a constant.
NEARLY_CONSTANT = 0.01
CONSTANT = 1e-12  # less is the rounding of float32
HIDDEN_DB = 6.0  # how far the worst part may lie below the whole without being mentioned

Floats = NDArray[np.float64]


class OutputPart(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the worst part of an output: these ``channels``, the indices along one ``axis``.

    ``sqnr_db`` is that of the part alone (None without error), ``rms`` of FP32's values there, and
    ``largest_rms`` of the channel that has most. With ``about_mean`` the signal is what the
    channels vary by: they are nearly constant.
    """

    axis: int
    channels: tuple[int, ...]
    rms: float
    largest_rms: float
    sqnr_db: float | None
    about_mean: bool = False


@dataclass(slots=True)
class _Sums:
    """Hold sums by channel, each [C] in float64: of squares, of squared errors, and of values."""

    signal: Floats
    noise: Floats
    total: Floats
    count: Floats


class ChannelSums:
    """Add up signals and errors by the indices of the axes that may hold channels.

    These are the second axis and the last; of more than three, the smaller of them. An axis whose
    size changes from sample to sample holds none.
    """

    def __init__(self) -> None:
        self._axes: dict[int, _Sums] | None = None

    def add(self, exact: Floats, actual: Floats, finite: NDArray[np.bool_]) -> None:
        """Add an output [N, ...] of FP32 and of the candidate; only `finite` places count."""
        axes = channel_axes(exact.shape)
        if self._axes is None:
            self._axes = {
                axis: _Sums(*(np.zeros(exact.shape[axis]) for _ in range(4))) for axis in axes
            }
        same = {a: s for a, s in self._axes.items() if a in axes and len(s.count) == exact.shape[a]}
        self._axes = same
        if not same:
            return
        wide = np.where(finite, exact, 0.0)
        error = np.where(finite, actual, 0.0) - wide
        for axis, sums in same.items():
            others = tuple(a for a in range(exact.ndim) if a != axis)
            sums.signal += np.square(wide).sum(axis=others)
            sums.noise += np.square(error).sum(axis=others)
            sums.total += wide.sum(axis=others)
            sums.count += np.count_nonzero(finite, axis=others)

    def worst(self) -> OutputPart | None:
        """Return the part of least SQNR; None where all channels are of one scale, and vary.

        Channels that are zero everywhere in FP32 have no signal to compare an error with, and are
        left out.
        """
        by_size = sorted((self._axes or {}).items(), key=lambda item: len(item[1].count))
        for axis, sums in by_size:
            groups = groups_of_scales(rms_of(sums))
            parts = [_part(axis, group, sums) for group in groups]
            if len(parts) > 1 or any(part.about_mean for part in parts):
                return min(parts, key=lambda part: stored_decibels(part.sqnr_db))
        return None


def channel_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return which axes of an output may hold channels."""
    found = {1, len(shape) - 1} if len(shape) > 1 else set()
    if len(shape) > 3:
        found = {min(found, key=lambda axis: (shape[axis], axis))}
    return tuple(sorted(axis for axis in found if 0 < shape[axis] <= MOST_CHANNELS))


def rms_of(sums: _Sums) -> Floats:
    """Return the root mean square of each channel [C]; 0 where it has no values."""
    found: Floats = np.sqrt(sums.signal / np.maximum(sums.count, 1))
    return found


def groups_of_scales(rms: Floats) -> list[tuple[int, ...]]:
    """Return the channels in groups of like scales, the largest first; those of zero in none."""
    order = [int(c) for c in np.argsort(-rms, kind="stable") if rms[c] > 0]
    groups: list[list[int]] = []
    for before, channel in zip([None, *order], order, strict=False):
        if before is None or rms[before] > GAP * rms[channel]:
            groups.append([])
        groups[-1].append(channel)
    return [tuple(sorted(group)) for group in groups]


def _part(axis: int, group: tuple[int, ...], sums: _Sums) -> OutputPart:
    at = list(group)
    energy, noise = float(sums.signal[at].sum()), float(sums.noise[at].sum())
    means = np.square(sums.total[at]) / np.maximum(sums.count[at], 1)
    variation = float((sums.signal[at] - means).sum())
    about_mean = CONSTANT * energy < variation < NEARLY_CONSTANT * energy
    return OutputPart(
        axis=axis,
        channels=group,
        rms=math.sqrt(energy / float(sums.count[at].sum())),
        largest_rms=float(rms_of(sums).max()),
        sqnr_db=none_if_infinite(decibels(variation if about_mean else energy, noise)),
        about_mean=about_mean,
    )
