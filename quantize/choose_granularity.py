"""Scales per token for graphs that are not a generator's: where they win on samples left out.

A custom transformer whose sequences have one length can take a static scale a position, as a
generator's inputs do. It costs two multiplications beside the product, so that it must gain
`TOKEN_GAIN_DB` on one scale for all, on both halves of the samples when fitted to the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.smoothed import Scaling
from ..calibrate.statistics import TensorStats
from ..numerics.qparams import QParams
from ..recipe.quantize import QuantizeOptions
from .groups import InputDecision, InputGroup
from .scaling.fit import one_range, round_inputs, scaled_input, scaled_ranges
from .token_qparams import format_candidates

Floats = NDArray[np.float64]

# Below it, gains are small and of either sign. A transformer of rar-mini as a custom graph (8 bits,
# 32 samples) has 1 input that gains 1 dB, 10 that gain 0.1: its logits on other samples are 0.06
# and 0.07 dB worse with them. In another calibration all 26 inputs together gain 0.4 dB, and
# nothing at 6 bits (benchmarks/results/one_road.md).
TOKEN_GAIN_DB = 3.0


def token_decisions(
    run: CalibrationRun,
    graphs: Mapping[str, ir.Graph],
    groups: Sequence[InputGroup],
    scalings: Mapping[str, Scaling],
    options: QuantizeOptions,
) -> dict[str, InputDecision]:
    """Return the decisions of groups that get scales per token, by key.

    They get them where they win; a plan that has their scale already says that they did.
    """
    found: dict[str, InputDecision] = {}
    for name in graphs:
        members = [g for g in groups if g.graph == name and g.tokens is not None]
        inside = run.inside(name)
        undecided = [group for group in members if group.activation.scale is None]
        winners = winning_groups(inside, undecided, scalings, options) if undecided else set()
        taken = [g for g in members if g.activation.scale is not None or g.key in winners]
        judged = inside if options.clip_power != 0 else None
        rounded = round_inputs(taken, scalings, inside, judged, options) if taken else {}
        for g in taken:
            found[g.key] = InputDecision(
                scalings[g.key],
                rounded[g.key].qparams,
                rounded[g.key].sqnr_db,
                rounded[g.key].channels.mean_square,
                g.divides,
                g.subtracts,
            )
    return found


def winning_groups(
    run: CalibrationRun,
    groups: Sequence[InputGroup],
    scalings: Mapping[str, Scaling],
    options: QuantizeOptions,
) -> set[str]:
    """Return the keys of groups whose rounding error is less with scales per token.

    QParams are fitted to one half of the samples and judged on the other, both ways round. One
    sample cannot judge another: no group wins then.
    """
    if run.size < 2:
        return set()
    one, other = run.first_half(), run.second_half()
    winners = list(groups)
    for fitted, judged in ((one, other), (other, one)):
        channels, tokens = scaled_ranges(winners, scalings, fitted)
        qparams = {
            g.key: both_granularities(g, tokens[g.key], channels[g.key], options) for g in winners
        }
        inputs = {g.key: scaled_input(g, scalings[g.key]) for g in winners}
        weights = {g.key: np.sqrt(g.energy) * scalings[g.key].smoothing for g in winners}
        errors = judged.clip_errors(inputs, qparams, weights)
        winners = [g for g in winners if token_gain_db(*errors[g.key][2]) >= TOKEN_GAIN_DB]
    return {group.key for group in winners}


def both_granularities(
    group: InputGroup, tokens: TensorStats, channels: TensorStats, options: QuantizeOptions
) -> list[QParams]:
    """Return QParams per token, and those of one scale repeated for every token; none clips."""
    fine, coarse = (
        format_candidates(stats, group.activation, allow_shift=options.shift, clip=False)[0]
        for stats in (tokens, one_range(channels))
    )
    ones = np.ones_like(fine.zero_point)
    return [fine, replace(coarse, scale=coarse.scale * ones, zero_point=coarse.zero_point * ones)]


def token_gain_db(fine: Floats, coarse: Floats) -> float:
    """Return what a token's SQNR gains on average, from squared errors [T]; -inf for a loss.

    The mean is over decibels: tokens are normalized one by one further on, so that one with massive
    activations must not decide for all. The sum of errors must not grow either.
    """
    alive = (fine > 0) & (coarse > 0)
    if not alive.any() or not fine.sum() <= coarse.sum():
        return -math.inf
    return float(10 * np.mean(np.log10(coarse[alive] / fine[alive])))
