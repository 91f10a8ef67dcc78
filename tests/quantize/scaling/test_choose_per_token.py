"""A scaling is chosen by its error on samples that it was not fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.smoothed import Scaling
from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.linears import site_weight
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.qparams import QParams
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.groups import InputGroup, find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.scaling.choose_per_token import (
    EVERY,
    METHODS,
    best_method,
    judged_errors,
    of_samples,
    scale_groups,
)
from arvg_trt.quantize.token_qparams import best_grid, format_candidates
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files, save_sample

from ...families.generators import TinyGenerator, activations
from ...families.tiny import silent

EMBEDDING = "word_embed"  # reads the samples' features as they are
OPTIONS = QuantizeOptions(smoothing="search", weight_bits=8)


def with_wide_channels(source: TinyGenerator, folder: Path, channels: list[int]) -> TinyGenerator:
    """Sample k is one of `source`, its feature channel `channels[k]` 30 times as wide."""
    folder.mkdir()
    template = load_sample(sample_files(source.samples)[0])
    rng = np.random.default_rng(0)
    for k, channel in enumerate(channels):
        features = rng.normal(size=template["features"].shape).astype(np.float32)
        features[..., channel] *= 30
        save_sample(template | {"features": features}, folder, k)
    return replace(source, samples=folder)


def teacher_forced_graph(source: TinyGenerator) -> CalibrationRun:
    return CalibrationRun(source.folder, source.samples, ("full",), 2, silent)


def groups_of(source: TinyGenerator, options: QuantizeOptions) -> list[InputGroup]:
    planned = SiteMap(sites=source.full_sites)
    entries = check_plan(make_plan(planned, options), planned)
    statistics = CalibrationRun(
        source.folder, source.samples, (source.full_sites[0].graph,), 2, silent
    ).input_ranges(source.full_sites)
    graph = load_graph(source.folder / "full.onnx").graph
    return find_groups(graph, source.full_sites, entries, statistics)


def searched(source: TinyGenerator) -> Scaling:
    options = QuantizeOptions(smoothing="search", weight_bits=8, include=(EMBEDDING,))
    groups = [g for g in groups_of(source, options) if g.key == EMBEDDING]
    graph = load_graph(source.folder / "full.onnx").graph
    return scale_groups(graph, groups, teacher_forced_graph(source), options)[EMBEDDING]


def test_a_channel_that_is_wide_in_all_samples_is_scaled(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    found = searched(with_wide_channels(tiny_var, tmp_path / "s", [3] * 6))
    assert found.smoothing.argmax() == 3
    assert found.smoothing[3] > 3 * np.median(found.smoothing)


def test_a_channel_that_is_wide_in_one_half_alone_is_not(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    found = searched(with_wide_channels(tiny_var, tmp_path / "s", [3, 3, 3, 5, 5, 5]))
    np.testing.assert_array_equal(found.smoothing, 1)
    assert found.center is None


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ([[1.0] * 6], 0),
        ([[1.0, 0.99, 1.0, 1.0, 1.0, 1.0]], 0),
        ([[1.0, 0.5, 0.4, 0.6, 0.7, 0.8]], 2),
        ([[1.0, 0.5, 0.4, 0.6, 0.7, 0.8], [1.0, 0.6, 1.1, 0.9, 1.0, 1.0]], 1),
        ([[0.0] * 6], 0),
    ],
)
def test_none_wins_unless_every_half_gains(errors: list[list[float]], best: int) -> None:
    assert best_method(errors) == METHODS[best]
    assert METHODS[0].scales is None


def test_one_sample_cannot_judge_another(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is 1"):
        searched(with_wide_channels(tiny_var, tmp_path / "s", [3]))


def test_halves_are_all_samples_once(tiny_var: TinyGenerator) -> None:
    whole = teacher_forced_graph(tiny_var)
    first, second = whole.first_half(), whole.second_half()
    assert (first.size, second.size, whole.size) == (3, 2, 5)
    views = {g.key: g.plain for g in groups_of(tiny_var, OPTIONS)}
    parts, total = [half.ranges(views) for half in (first, second)], whole.ranges(views)
    for key, stats in total.items():
        np.testing.assert_array_equal(stats.low, np.minimum(parts[0][key].low, parts[1][key].low))
        assert stats.count == parts[0][key].count + parts[1][key].count


def test_judged_errors_are_those_of_grids_of_the_other_half(tiny_var: TinyGenerator) -> None:
    """Errors equal float64 sums over all activations."""
    groups = [g for g in groups_of(tiny_var, OPTIONS) if g.tokens is not None][:4]
    run = teacher_forced_graph(tiny_var)
    fitted, judged = run.first_half(), run.second_half()
    half = of_samples(groups, fitted)
    rng = np.random.default_rng(1)
    scales = {g.key: np.exp(rng.normal(0, 0.5, len(g.stats.low))) for g in groups}
    graph = load_graph(tiny_var.folder / "full.onnx").graph
    found = judged_errors(
        graph, half, {k: Scaling(s, None) for k, s in scales.items()}, fitted, judged, OPTIONS
    )
    path = tiny_var.folder / "full.onnx"
    inputs = activations(path, tiny_var.feeds(), [g.sites[0].input for g in groups])
    for g in groups:
        x = inputs[g.sites[0].input] / scales[g.key]
        of_weight = sum(weight_error(graph, site, scales[g.key], x[:3]) for site in g.sites)
        of_input = input_error(g, x[:3], x[3:], np.sqrt(g.energy) * scales[g.key])
        assert found[g.key] == pytest.approx(of_input + of_weight, rel=1e-4)
        assert of_input > 0.1 * of_weight > 0


def input_error(
    group: InputGroup, fitted: np.ndarray, judged: np.ndarray, gain: np.ndarray
) -> float:
    """A sample's, on the grids whose ranges are of `fitted`, clipped as is best for `judged`."""
    low, high = fitted.min(axis=(0, 2)), fitted.max(axis=(0, 2))
    count = len(fitted) * fitted.shape[2]
    ranges = TensorStats(low, high, np.square(fitted).sum(axis=(0, 2)), count)
    grids = format_candidates(ranges, group.activation, allow_shift=True)[::EVERY]
    errors = np.stack([grid_error(grid, judged, gain) for grid in grids])
    _, best = best_grid(grids, errors, len(fitted))
    return float(errors[best, np.arange(len(best))].sum()) / len(judged)


def grid_error(grid: QParams, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    step, low = grid.scale[:, None], -grid.zero_point[:, None] - 2.0 ** (grid.bits - 1)
    rounded = np.clip(np.rint(x / step), low, low + 2**grid.bits - 1) * step
    return np.square((rounded - x) * gain).sum(axis=(0, 2))


def weight_error(graph, site: Site, scale: np.ndarray, x: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    """A sample's, of the weight's symmetric 8-bit grids of a channel."""
    weight = site_weight(graph, site).astype(np.float64) * scale
    chosen = quantize_weight(weight.astype(np.float32), WeightFormat(bits=8)).dequantize()
    return float(np.square(x).sum(axis=(0, 1)) @ np.square(chosen - weight).sum(axis=0)) / len(x)
