"""Define weight grids: symmetric uniform and logarithmic, 2 to 8 bits.

Output channels are axis 0 of a weight. `weight_range` searches the range of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from .blockwise import quantize_blocks
from .parts import ScaledWeight, Weight, parts
from .scheme import WeightFormat
from .weight_range import (
    CHUNK,
    NEARBY_BITS,
    log_ratios,
    magnitude_histogram,
    refine_uniform,
    row_tops,
    search_log,
    search_uniform,
)

FP8 = ml_dtypes.float8_e4m3fn
FP8_MAX = 448.0
LARGEST_EXPONENT = 8  # exponent of the largest power of two in E4M3
ROUNDED = 2**20  # weights at once: what is computed of four times as many takes twice as long each
# With fewer bits a step is too large to be spent on preserving a sum.
TAP_SUM_BITS = 4


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Hold quantized values `q`, and the format and scales that give them their meaning.

    uniform: ``w = q * scale``; log: ``w = sign(q) * scale * ratio**(n - |q|)`` with
    n = 2^(bits-1) - 1 magnitudes, 0 is zero; log2: the same with a ratio of 1/2; fp8: the bits
    of an E4M3 number times ``scale``. ``q`` has the weight's shape, values in +-n (fp8: any);
    ``scale`` and ``ratio`` are float32, [1] (per tensor), [O] or (``scale``) [O, I / block].
    ``factor`` [O] multiplies weights in blocks once more (powers of two), None for 1.
    """

    format: WeightFormat
    q: NDArray[np.int8]
    scale: NDArray[np.float32]
    ratio: NDArray[np.float32] | None = None
    factor: NDArray[np.float32] | None = None

    def dequantize(self) -> NDArray[np.float32]:
        """Return the float32 weight that `q` stands for, exactly as the graph holds it."""
        shape = (-1,) + (1,) * (self.q.ndim - 1)
        if self.format.grid == "fp8":
            values: NDArray[np.float32] = self.q.view(FP8).astype(np.float32)
            return values * self.scale.reshape(shape)
        if self.format.block is not None:
            blocks = self.q.reshape(*self.scale.shape, self.format.block).astype(np.float32)
            whole: NDArray[np.float32] = blocks * self.scale[..., None]
            if self.factor is not None:
                whole = whole * self.factor[:, None, None]
            return whole.reshape(self.q.shape)
        if not self.is_logarithmic:
            return self.q.astype(np.float32) * self.scale.reshape(shape)
        ratio = np.full_like(self.scale, 0.5) if self.ratio is None else self.ratio
        table = log_table(self.scale, ratio, self.format.bits)
        rows = self.q.reshape(len(table), -1)
        magnitude = np.take_along_axis(table, np.abs(rows).astype(np.int64), axis=1)
        return (np.sign(rows) * magnitude).reshape(self.q.shape).astype(np.float32)

    def dequantize_rows(self, part: slice) -> NDArray[np.float32]:
        """Return what `dequantize` does, of some output channels."""
        return self.rows(part).dequantize()

    def rows(self, part: slice) -> QuantizedWeight:
        """Return some output channels, which share the memory of all."""

        def of(values: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return values if values is None or len(values) == 1 else values[part]

        scale = of(self.scale)
        assert scale is not None
        return QuantizedWeight(self.format, self.q[part], scale, of(self.ratio), of(self.factor))

    @property
    def is_logarithmic(self) -> bool:
        """Return whether `q` are levels of a table, which no operator of ONNX reads."""
        return self.format.grid in ("log", "log2")


def as_fp8(weight: QuantizedWeight) -> QuantizedWeight:
    """Return a weight on a grid of powers of two as FP8, without further error.

    The largest level becomes 2^8; 15 magnitudes, of 5 bits, are normal numbers of E4M3.
    """
    n = 2 ** (weight.format.bits - 1) - 1
    magnitude = np.abs(weight.q).astype(np.float32)
    levels = np.sign(weight.q) * np.exp2(LARGEST_EXPONENT + magnitude - n)
    q: NDArray[np.int8] = levels.astype(FP8).view(np.int8)
    scale = np.ldexp(weight.scale, -LARGEST_EXPONENT)
    return QuantizedWeight(
        WeightFormat(bits=8, grid="fp8", granularity=weight.format.granularity), q, scale
    )


def log_table(
    scale: NDArray[np.float32], ratio: NDArray[np.float32], bits: int
) -> NDArray[np.float32]:
    """Return the magnitudes by |q|, [G, 2^(bits-1)]: 0, then scale * ratio^(n-1) ... scale."""
    n = 2 ** (bits - 1) - 1
    powers = ratio.astype(np.float64)[:, None] ** np.arange(n - 1, -1, -1)
    table = np.concatenate([np.zeros((len(scale), 1)), scale[:, None] * powers], axis=1)
    return table.astype(np.float32)


def quantize_weight(
    weight: Weight,
    weight_format: WeightFormat,
    importance: NDArray[np.float64] | None = None,
    *,
    tap_sums: bool = False,
) -> QuantizedWeight:
    """Round a weight [O, I, ...] to the grid of its format.

    With `tap_sums`, kernels on a uniform grid per channel of 4 bits or more keep their sums.
    `importance` [I], the mean square of each input channel, weights the searched error.

    Raises:
        CalibrationError: a weight that is not finite.
    """
    if not all(np.isfinite(weight[part]).all() for part in parts(weight, ROUNDED)):
        raise CalibrationError(
            "a weight that is to be rounded has NaN or infinity",
            do="check the checkpoint, and the scales of a plan that multiply it",
        )
    if weight_format.block is not None:
        whole = np.asarray(weight)
        in_blocks, scale, factor = quantize_blocks(whole, weight_format.block, importance)
        return QuantizedWeight(weight_format, in_blocks, scale, factor=factor)
    held = weight.weight if isinstance(weight, ScaledWeight) else weight
    q, powers = np.empty_like(held, np.int8), weight_format.grid == "log2"
    if weight_format.granularity == "per_tensor" or len(weight) == 1:
        scale, ratio = search_one_scale(weight, weight_format, importance)
        for part in parts(weight, ROUNDED):
            rows = weight[part].astype(np.float64).reshape(1, -1)
            q[part] = round_part(rows, weight[part].shape, scale, ratio, weight_format)
        return QuantizedWeight(weight_format, q, scale, None if powers else ratio)
    top = row_tops(as_rows(weight[part]) for part in parts(weight, ROUNDED))
    scales, ratios = [], []
    for part in parts(weight, ROUNDED):
        floats = weight[part]
        rows, columns = as_rows(floats.astype(np.float64)), column_weights(floats, importance)
        histogram = magnitude_histogram(rows, columns, top[part])
        scale, ratio = search_grid(histogram, rows, columns, top[part], weight_format)
        q[part] = round_part(rows, floats.shape, scale, ratio, weight_format, tap_sums=tap_sums)
        scales.append(scale)
        ratios += [] if ratio is None or powers else [ratio]
    found = np.concatenate(ratios) if ratios else None
    return QuantizedWeight(weight_format, q, np.concatenate(scales), found)


def as_rows(weight: NDArray[Any]) -> NDArray[Any]:
    """Return a weight [O, I, ...] as [O, M]."""
    return weight.reshape(len(weight), -1)


def column_weights(
    weight: NDArray[np.float32], importance: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return what counts the error of each weight, [O, M]."""
    if importance is None:
        return None
    shape = (1, -1) + (1,) * (weight.ndim - 2)
    return as_rows(np.broadcast_to(importance.reshape(shape), weight.shape))


def search_one_scale(
    weight: Weight, weight_format: WeightFormat, importance: NDArray[np.float64] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the scale and the ratio of a whole weight, [1] each; errors are of a stride of it."""

    def flat(part: slice) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        columns = column_weights(weight[part], importance)
        rows = weight[part].astype(np.float64).reshape(1, -1)
        return rows, None if columns is None else columns.reshape(1, -1)

    top = row_tops([np.array([[np.abs(weight[part]).max() for part in parts(weight, ROUNDED)]])])
    stride, seen = max(1, weight.size // CHUNK), 0
    histogram: Any = 0.0
    sampled: list[NDArray[np.float64]] = []
    gains: list[NDArray[np.float64]] = []
    for part in parts(weight, ROUNDED):
        rows, columns = flat(part)
        histogram = histogram + magnitude_histogram(rows, columns, top)
        chosen = slice(-seen % stride, None, stride)
        sampled.append(rows[:, chosen])
        gains += [] if columns is None else [columns[:, chosen]]
        seen += rows.size
    gain = np.concatenate(gains, axis=1) if gains else None
    return search_grid(histogram, np.concatenate(sampled, axis=1), gain, top, weight_format)


def search_grid(
    histogram: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64] | None,
    top: NDArray[np.float64],
    weight_format: WeightFormat,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the scales and ratios [G] of groups `rows` [G, M] with largest magnitudes `top`."""
    n = 2 ** (weight_format.bits - 1) - 1
    if weight_format.grid == "fp8":
        return (top / FP8_MAX).astype(np.float32), None
    if weight_format.grid == "uniform":
        fraction = search_uniform(histogram, n)
        if weight_format.bits >= NEARBY_BITS:
            fraction = refine_uniform(rows, columns, top, fraction, n)
        return (top * fraction / n).astype(np.float32), None
    powers = weight_format.grid == "log2"
    fraction, ratio = search_log(histogram, n, [0.5] if powers else log_ratios(n))
    return (top * fraction).astype(np.float32), ratio.astype(np.float32)


def round_part(
    rows: NDArray[np.float64],
    shape: tuple[int, ...],
    scale: NDArray[np.float32],
    ratio: NDArray[np.float32] | None,
    weight_format: WeightFormat,
    *,
    tap_sums: bool = False,
) -> NDArray[np.int8]:
    """Round output channels of a `shape`, as `rows` of one scale each [G, M], to their grids."""
    n = 2 ** (weight_format.bits - 1) - 1
    if weight_format.grid == "fp8":
        values = (rows / scale.astype(np.float64)[:, None]).clip(-FP8_MAX, FP8_MAX).astype(FP8)
        return values.view(np.int8).reshape(shape)
    if weight_format.grid == "uniform":
        exact = rows / scale.astype(np.float64)[:, None]
        q = np.clip(np.round(exact), -n, n)
        if tap_sums and len(shape) > 2 and weight_format.bits >= TAP_SUM_BITS:
            kernels = (*shape[:2], -1)
            q = preserve_kernel_sums(exact.reshape(kernels), q.reshape(kernels), n)
        return q.reshape(shape).astype(np.int8)
    assert ratio is not None
    table = log_table(scale, ratio, weight_format.bits).astype(np.float64)
    magnitudes = np.copysign(nearest_magnitudes(np.abs(rows), table), rows)
    return magnitudes.astype(np.int8).reshape(shape)


def nearest_magnitudes(
    magnitudes: NDArray[np.float64], table: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the index of the nearest of each group's rising magnitudes [G, L] to each of [G, M].

    One search over all groups: each is brought to an interval of its own.
    """
    groups = np.arange(len(table))[:, None]
    top = table[:, -1:]
    middles = (table[:, 1:] + table[:, :-1]) / (2 * top) + 2 * groups
    found = np.searchsorted(middles.ravel(), np.minimum(magnitudes / top, 1.5) + 2 * groups)
    index: NDArray[np.int64] = found - groups * middles.shape[1]
    return index


def preserve_kernel_sums(
    exact: NDArray[np.float64], q: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """Move rounded values by one step so that each kernel's errors sum to at most half a step.

    `exact` is w / scale and `q` its nearest integers within +-n, both [O, I, taps].
    Neighbouring pixels of a feature map are alike, so that the errors of a kernel's elements add
    up; those moved were nearest to rounding the other way. Clipped elements stay and do not count.
    """
    error = np.where(np.abs(exact) > n + 0.5, 0.0, exact - q)
    # A sum of half a step is left, also where its rounding ends a little above.
    excess = np.round(error.sum(axis=2, keepdims=True) * (1 - 1e-10))
    toward = error * np.sign(excess)
    rank = np.argsort(np.argsort(-toward, axis=2, kind="stable"), axis=2)
    moved: NDArray[np.float64] = q + np.where(rank < np.abs(excess), np.sign(excess), 0.0)
    return np.clip(moved, -n, n)
