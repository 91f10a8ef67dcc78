"""Losses of formats: what is measured is what the format does, the rest follows its noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.search.losses import format_losses, output_noise
from arvg_trt.recipe.quantize import QuantizeOptions

RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(0, 1, (8, 6, 3, 3)).astype(np.float32)
INPUTS = RNG.normal(0, 1, (500, 6)) * np.geomspace(0.1, 3, 6)
STATS = TensorStats(INPUTS.min(0), INPUTS.max(0), np.square(INPUTS).sum(0), len(INPUTS))
OPTIONS = QuantizeOptions(tap_sums=False)


def forms(*bits: int) -> list[WeightFormat]:
    return [WeightFormat(bits=b, grid=grid) for grid in ("uniform", "log") for b in bits]


def test_noise_is_that_of_the_output_for_independent_inputs() -> None:
    error = RNG.normal(0, 1, (8, 6, 1, 1)).astype(np.float32)
    x = RNG.choice([-1.0, 1.0], (20000, 6)) * np.sqrt(STATS.square / STATS.count)
    wanted = np.square(x @ error[:, :, 0, 0].T.astype(np.float64)).sum(axis=1).mean()
    assert output_noise(error, STATS) == pytest.approx(wanted, rel=0.02)


def test_a_few_widths_are_measured_and_the_others_follow_the_noise() -> None:
    """On a graph whose loss is a multiple of the noise nothing is lost by that."""
    calls = []

    def measure(rounded: np.ndarray) -> float:
        calls.append(rounded)
        return 7 * output_noise(rounded - WEIGHT, STATS)

    rows = format_losses(WEIGHT, forms(2, 3, 4, 5, 6, 7, 8), STATS, None, OPTIONS, measure)
    assert [r.format.bits for r in rows if r.measured] == [2, 3, 4, 6] * 2 and len(calls) == 8
    for row in rows:
        assert row.loss == pytest.approx(7 * row.noise, rel=1e-6)
        rounded = quantize_weight(WEIGHT, row.format).dequantize()
        assert row.noise == pytest.approx(output_noise(rounded - WEIGHT, STATS))


def test_between_two_measured_widths_the_ratio_is_their_geometric_mean() -> None:
    by_call = iter([4.0, 1.0])
    rows = format_losses(
        WEIGHT,
        [WeightFormat(bits=b) for b in (4, 5, 6)],
        STATS,
        None,
        OPTIONS,
        lambda _: next(by_call),
    )
    low, middle, high = rows
    ratio = np.sqrt(low.loss / low.noise * high.loss / high.noise)
    assert middle.loss == pytest.approx(ratio * middle.noise)


def test_widths_that_are_never_measured_are_where_there_are_no_others() -> None:
    rows = format_losses(WEIGHT, [WeightFormat(bits=8)], STATS, None, OPTIONS, lambda _: 0.5)
    assert [(r.measured, r.loss) for r in rows] == [(True, 0.5)]


def test_a_smoothed_weight_is_rounded_as_quantize_does_and_divided_again() -> None:
    smoothing = np.geomspace(0.2, 5, 6).astype(np.float32)
    seen = []

    def loss(rounded: NDArray[np.float32]) -> float:
        seen.append(rounded)
        return 0.0

    format_losses(
        WEIGHT,
        [WeightFormat(bits=4)],
        STATS,
        smoothing,
        QuantizeOptions(tap_sums=True),
        loss,
    )
    by_channel = smoothing.reshape(1, -1, 1, 1)
    wide = quantize_weight(WEIGHT * by_channel, WeightFormat(bits=4), tap_sums=True)
    np.testing.assert_allclose(seen[0] * by_channel, wide.dequantize(), rtol=1e-6)
