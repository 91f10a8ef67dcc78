"""Find the scale of each token of an input: candidates by the ranges seen, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..calibrate.statistics import TensorStats
from ..numerics.clipping import least
from ..numerics.qparams import QParams
from ..numerics.scheme import ActivationFormat
from ..numerics.weight import FP8_MAX
from ..recipe.quantize import QuantizeOptions
from .groups import InputGroup
from .scaling.predicted import ONE_SIDED

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
# A position that calibration saw dead gets a share of the widest one's range: never a step of 0,
# and no factor that half precision cannot hold.
LEAST_RANGE = 1e-4
SMALLEST = 1e-12
# Above 1: other samples reach further than those seen.
TOKEN_FRACTIONS = (1.15, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# A crest factor that is so many times the USUAL quantile of all positions' is a sink's own.
SINK, USUAL = 2.0, 0.9
# Samples that the mean over positions counts as, beside a position's own. Clips of each position's
# own choice fit what was seen: with 8 in place of 256, 0.6 dB of VAR mini's logits at 8 bits.
PRIOR = 256
# An FP8 grid loses nothing by reaching further: which quarter of an octave has the least error.
FP8_FRACTIONS = (1.0, 2**0.25, 2**0.5, 2**0.75)


def token_candidates(
    group: InputGroup, ranges: TensorStats, options: QuantizeOptions
) -> list[QParams]:
    """Return what a group's input may be rounded to; one where the plan already has its scale."""
    wanted = group.activation
    if wanted.scale is not None and group.tokens is None:
        return [QParams.from_format(wanted)]
    return format_candidates(
        ranges, wanted, allow_shift=options.shift, clip=options.clip_power != 0
    )


def format_candidates(
    ranges: TensorStats, wanted: ActivationFormat, *, allow_shift: bool, clip: bool = True
) -> list[QParams]:
    """Return grids of a plan's format for positions of these ranges; the first is not clipped.

    `clip` False: only that one.
    """
    if wanted.grid == "fp8":
        return fp8_candidates(ranges, FP8_FRACTIONS if clip else FP8_FRACTIONS[:1])
    fractions = TOKEN_FRACTIONS if clip else (1.0,)
    return grid_candidates(ranges, wanted.bits, allow_shift=allow_shift, fractions=fractions)


def fp8_candidates(ranges: TensorStats, fractions: Sequence[float]) -> list[QParams]:
    """Return grids that put a multiple of the positions' reach [T] on E4M3's largest number."""
    reach = np.maximum(-ranges.low, ranges.high)
    reach = np.maximum(reach, usual_reach(ranges, reach))
    reach = np.maximum(reach, max(LEAST_RANGE * float(reach.max()), SMALLEST))
    return [QParams.symmetric(reach * fraction / FP8_MAX, 8, "fp8") for fraction in fractions]


def grid_candidates(
    ranges: TensorStats,
    bits: int,
    *,
    allow_shift: bool,
    fractions: Sequence[float] = TOKEN_FRACTIONS,
) -> list[QParams]:
    """Return grids whose long side is a share of the positions' ranges [T].

    The short is not clipped.

    Zero is in every range. One-sided ones get an integer shift, others are symmetric.
    """
    low, high = np.minimum(ranges.low, 0), np.maximum(ranges.high, 0)
    shifted = allow_shift and is_one_sided(low, high)
    reach = np.maximum(-low, high)
    reach = np.maximum(reach, usual_reach(ranges, reach))
    high, low = np.where(high >= -low, reach, high), np.where(high >= -low, low, -reach)
    floor = max(LEAST_RANGE * float(reach.max()), SMALLEST)
    half = 2 ** (bits - 1)
    grids = []
    for fraction in fractions:
        long = np.maximum(reach * fraction, floor)
        if not shifted:
            # The negative side of the grid has one step more than the positive.
            grids.append(QParams.symmetric(long / (half - 1), bits))
            continue
        upward = high >= -low
        bottom, top = np.where(upward, np.maximum(low, -long), -long), np.where(upward, long, high)
        top = np.minimum(top, long)
        step = (top - bottom) / (2 * half - 1)
        grids.append(QParams(step, -np.rint(bottom / step).astype(np.int64) - half, bits))
    return grids


def is_one_sided(low: Floats, high: Floats) -> bool:
    """Return whether the median token's range is one-sided: its short side under half the long."""
    short, long = np.minimum(-low, high), np.maximum(-low, high)
    alive = long > 0
    return bool(alive.any() and np.median(short[alive] / long[alive]) < ONE_SIDED)


def usual_reach(ranges: TensorStats, reach: Floats) -> Floats:
    """Return each token's root mean square times the highest crest factor of any token, [T].

    Few samples do not show how far a position can reach, all positions together do: with ranges of
    each one's own, values that calibration did not see were clipped (VAR mini, 8 bits: -0.8 dB).
    Sinks do not count: a first token with massive activations says nothing of the others (one with
    a crest factor of 23 left a fifth of its levels to every other position of a planted model).
    """
    rms = np.sqrt(ranges.mean_square)
    alive = rms > 0
    if not alive.any():
        return np.zeros_like(rms)
    crests = reach[alive] / rms[alive]
    most = SINK * np.quantile(crests, USUAL, method="higher")
    usual: Floats = np.max(crests[crests <= most]) * rms
    return usual


def best_grid(
    candidates: Sequence[QParams], errors: Floats, samples: int | Index
) -> tuple[QParams, Index]:
    """Return the candidate of least error of each token, and which that is [T].

    `errors` is [candidates, T], of `samples` samples. Few of them tell little of a position's
    tails: its errors count as `samples` beside `PRIOR` of the geometric mean over positions, all as
    ratios to those of the first candidate.
    """
    alive = errors.min(axis=0) > 0
    ratio = np.where(alive, errors / np.where(alive, errors[0], 1), 1)
    usual = np.exp(np.log(ratio).mean(axis=1, keepdims=True))
    own = samples / (samples + PRIOR)
    best = least(own * ratio + (1 - own) * np.where(alive, usual, 1))
    where = np.arange(len(best))
    scale = np.stack([tried.scale for tried in candidates])[best, where]
    zero_point = np.stack([tried.zero_point for tried in candidates])[best, where]
    return replace(candidates[0], scale=scale, zero_point=zero_point), best
