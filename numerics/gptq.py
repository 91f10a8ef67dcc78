"""Round a weight so that its errors compensate each other on the calibration data (GPTQ).

Minimises sum |(W - Q) x|^2 over the rows x that the product is fed, column by column, each
column's error carried to those that follow (GPTQ, arXiv 2210.17323). Written in the equivalent form
of QuIP (arXiv 2307.13304, section 3.1, LDLQ), which needs no inverse: with H = U D U^T, U unit
upper triangular, E = W - Q and t_k = W_k + sum_{j<k} E_j U_jk, the error is
sum_k D_k |t_k - Q_k|^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blockwise import half_scale
from .weight import QuantizedWeight, log_table, nearest_magnitudes

Floats = NDArray[np.float64]
BLOCK = 64
DAMPING = 0.01  # added to the diagonal, relative to its mean
# More damping where rows are few, so that directions without data still cost something.
FEW_ROWS = 0.25  # times columns / rows
# Scales that are tried, as multiples of the one with the least rounding error.
STEPS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.2)
SEARCHED_BITS = 4  # with more bits the first scale is as good


@dataclass(frozen=True, slots=True)
class Factor:
    """Hold H[order][:, order] + damping = U diag(D) U^T, with U unit upper triangular [K, K]."""

    order: NDArray[np.int64]
    upper: Floats
    diagonal: Floats


@dataclass(frozen=True, slots=True)
class UnitLevels:
    """Hold the values of a grid of scale (or largest magnitude) 1 for each row.

    `table` [G, 2^(bits-1)] has the magnitudes of a logarithmic grid; None means the integers
    themselves.
    """

    bits: int
    table: Floats | None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> UnitLevels:
        bits = weight.format.bits
        if not weight.is_logarithmic:
            return cls(bits, None)
        ones = np.ones_like(weight.scale)
        ratio = np.full_like(weight.scale, 0.5) if weight.ratio is None else weight.ratio
        return cls(bits, log_table(ones, ratio, bits).astype(np.float64))

    def quantize(self, values: Floats) -> Floats:
        """Return the integers of the points nearest to `values`, [O] or [O, M]."""
        if self.table is None:
            top = 2 ** (self.bits - 1) - 1
            return np.clip(np.rint(values), -top, top)
        rows = values.reshape(len(self.table), -1)
        found = np.copysign(nearest_magnitudes(np.abs(rows), self.table), rows)
        return found.reshape(values.shape)

    def values(self, q: Floats) -> Floats:
        if self.table is None:
            return q
        rows = q.reshape(len(self.table), -1)
        magnitudes = np.take_along_axis(self.table, np.abs(rows).astype(np.int64), axis=1)
        return np.copysign(magnitudes, rows).reshape(q.shape)


def compensate(
    weight: NDArray[np.float32],
    nearest: QuantizedWeight,
    square: Floats,
    rows: int,
    steps: Sequence[float] = STEPS,
) -> QuantizedWeight:
    """Round `weight` [O, I, ...] again on the grid of `nearest`, its rounding to nearest.

    `square` [K, K] is the sum of x x^T over `rows` rows, K = I * kernel. At few bits the
    best of `steps` is taken; scales of channels or tensors are fitted by least squares. Where the
    sum of squares over the rows would not fall, a channel (a tensor, if it has one scale) stays as
    it is in `nearest`.
    """
    wide = weight.reshape(len(weight), -1).astype(np.float64)
    levels, factor, start = UnitLevels.of(nearest), factorize(square, rows), nearest.scale
    q, scale = np.zeros_like(wide), start
    least = np.full(1 if start.size == 1 else len(wide), np.inf)
    inside = wide if nearest.factor is None else wide / nearest.factor.astype(np.float64)[:, None]
    for step in steps if nearest.format.bits <= SEARCHED_BITS else steps[:1]:
        tried = start * np.float32(step)
        tried = tried if start.ndim == 1 else half_scale(tried)
        made, errors = round_columns(inside, tried, levels, factor)
        better = by_scale(errors, start) < least
        least = np.where(better, by_scale(errors, start), least)
        scale, q = by_row(better, tried, scale), by_row(better, made, q)
    choices = [scale]
    if start.ndim == 1:
        choices.append(fit_scale(wide, levels.values(q), scale, square))
    best, lowest = nearest, by_scale(output_error(wide, nearest, square), start)
    whole = q.astype(np.int8).reshape(nearest.q.shape)
    for tried in choices:
        candidate = replace(nearest, q=whole, scale=tried)
        errors = by_scale(output_error(wide, candidate, square), start)
        better = errors < lowest
        lowest = np.where(better, errors, lowest)
        best = replace(
            best, q=by_row(better, whole, best.q), scale=by_row(better, tried, best.scale)
        )
    return best


def factorize(square: Floats, rows: int) -> Factor:
    """Factorize XᵀX, columns of large mean square first; dead ones get the damping alone."""
    columns = len(square)
    importance = np.diag(square)
    order = np.argsort(-importance, kind="stable")
    damping = max(DAMPING, FEW_ROWS * columns / max(1, rows))
    turned = order[::-1]
    damped = square[np.ix_(turned, turned)]
    damped.flat[:: columns + 1] += damping * float(importance.mean()) or 1.0
    lower = np.asarray(np.linalg.cholesky(damped), np.float64)
    root: Floats = np.diag(lower).copy()
    lower /= root
    diagonal: Floats = np.square(root)
    return Factor(order, lower[::-1, ::-1], diagonal[::-1])


def round_columns(
    weight: Floats, scale: NDArray[np.float32], levels: UnitLevels, factor: Factor
) -> tuple[Floats, Floats]:
    """Return the quantized values [O, K] and the damped error of each row, [O]."""
    columns = weight.shape[1]
    ordered = weight[:, factor.order]
    error, made = np.zeros_like(ordered), np.zeros_like(ordered)
    total = np.zeros(len(weight))
    steps = scale.astype(np.float64)
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        carried = ordered[:, start:end] + error[:, :start] @ factor.upper[:start, start:end]
        for k in range(start, end):
            target = carried[:, k - start] + error[:, start:k] @ factor.upper[start:k, k]
            # With blocks, the scale of the column's block.
            step = steps if steps.ndim == 1 else steps.T[factor.order[k] * len(steps.T) // columns]
            made[:, k] = levels.quantize(target / step)
            rounded = levels.values(made[:, k]) * step
            error[:, k] = ordered[:, k] - rounded
            total += factor.diagonal[k] * np.square(target - rounded)
    q = np.empty_like(made)
    q[:, factor.order] = made
    return q, total


def fit_scale(
    weight: Floats, values: Floats, scale: NDArray[np.float32], square: Floats
) -> NDArray[np.float32]:
    """Return argmin_s sum |(W - s V) x|^2 = <V, W>_H / <V, V>_H, per channel or for all."""
    projected = values @ square
    against = by_scale((projected * weight).sum(axis=1), scale)
    energy = by_scale((projected * values).sum(axis=1), scale)
    usable = (against > 0) & (energy > 0)
    fitted = (against / np.where(usable, energy, 1.0)).astype(np.float32)
    return np.where(usable & (fitted > 0), fitted, scale)


def output_error(weight: Floats, rounded: QuantizedWeight, square: Floats) -> Floats:
    """Return sum |(W - Q) x|^2 by output channel, [O]."""
    error = weight - rounded.dequantize().reshape(weight.shape).astype(np.float64)
    total: Floats = ((error @ square) * error).sum(axis=1)
    return total


def by_scale(errors: Floats, scale: NDArray[np.float32]) -> Floats:
    """Return errors by channel as they are, or their sum [1] where all have one scale."""
    return errors if scale.size > 1 else errors.sum(keepdims=True)


def by_row(mask: NDArray[np.bool_], new: NDArray[Any], old: NDArray[Any]) -> NDArray[Any]:
    """Return `new` in the chosen rows ([1]: in all or none), else `old`."""
    return np.where(mask.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
