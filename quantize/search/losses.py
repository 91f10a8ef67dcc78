"""Estimate the loss of each format at each site: a few are measured alone, the others scaled.

A site's loss follows the noise that its rounded weight makes at its own output, within a factor of
two or so over neighbouring widths, and leaves that law at 2 and 3 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...calibrate.statistics import TensorStats
from ...numerics.scheme import WeightFormat
from ...numerics.weight import quantize_weight
from ...recipe.quantize import QuantizeOptions

Floats = NDArray[np.float32]
MEASURED_BITS = (2, 3, 4, 6)


class FormatLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the loss at the output of a site's graph when its weight alone is rounded.

    `noise` is the mean square of what the rounding adds to the site's own output, summed over
    output channels; `measured` False: the loss is scaled by it from the nearest measured widths.
    """

    format: WeightFormat
    loss: float
    noise: float
    measured: bool


def format_losses(
    weight: Floats,
    forms: Sequence[WeightFormat],
    stats: TensorStats | None,
    smoothing: Floats | None,
    options: QuantizeOptions,
    measure: Callable[[Floats], float],
) -> list[FormatLoss]:
    """Return the loss of each format of a weight [O, I, ...]; `measure` runs the graph.

    Forms of one grid at widths other than 2, 3, 4 and 6 are scaled, unless there is no such width.
    """
    anchors = {form.bits for form in forms if form.bits in MEASURED_BITS}
    rows = []
    for form in forms:
        rounded = rounded_weight(weight, form, stats, smoothing, options)
        noise = output_noise(rounded - weight, stats)
        measured = form.bits in anchors or not anchors
        loss = measure(rounded) if measured else 0.0
        rows.append(FormatLoss(format=form, loss=loss, noise=noise, measured=measured))
    return [row if row.measured else scaled(row, rows) for row in rows]


def scaled(row: FormatLoss, rows: Sequence[FormatLoss]) -> FormatLoss:
    """Scale a loss by noise, from the nearest measured formats of the same grid."""
    same = [r for r in rows if r.measured and r.noise > 0 and kind(r.format) == kind(row.format)]
    narrower = [r for r in same if r.format.bits < row.format.bits][-1:]
    wider = [r for r in same if r.format.bits > row.format.bits][:1]
    ratios = [r.loss / r.noise for r in narrower + wider]
    mean = float(np.prod(ratios)) ** (1 / len(ratios)) if ratios else 0.0
    return msgspec.structs.replace(row, loss=mean * row.noise)


def kind(form: WeightFormat) -> tuple[str, str]:
    return form.grid, form.granularity


def rounded_weight(
    weight: Floats,
    form: WeightFormat,
    stats: TensorStats | None,
    smoothing: Floats | None,
    options: QuantizeOptions,
) -> Floats:
    """Return what a product computes with: W * smoothing as `quantize` rounds it, divided again."""
    wide, importance = weight, None
    ones = np.ones(weight.shape[1], np.float32)
    held = ones if smoothing is None else smoothing
    by_channel = held.reshape(1, -1, *(1,) * (weight.ndim - 2))
    if smoothing is not None:
        wide = weight * by_channel
    if options.data_aware and stats is not None and form.granularity == "per_channel":
        importance = stats.square / max(1, stats.count) / held.astype(np.float64) ** 2
    return quantize_weight(wide, form, importance, tap_sums=options.tap_sums).dequantize() / (
        by_channel
    )


def output_noise(error: Floats, stats: TensorStats | None) -> float:
    """Return sum_i E[x_i^2] |dW_i|^2: channels and kernel elements taken as independent."""
    by_tap = error.reshape(*error.shape[:2], -1).astype(np.float64)
    energy = np.einsum("oit,oit->i", by_tap, by_tap)
    mean = 1.0 if stats is None else stats.square / max(1, stats.count)
    return float(np.sum(energy * mean))
