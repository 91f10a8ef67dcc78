"""Smoothed inputs inside the graph equal plain float64 numpy over all activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.clip_error import fits_operators
from arvg_trt.calibrate.observers.smoothed import SmoothedInput, plain_input
from arvg_trt.calibrate.statistics import POSITION
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.qparams import QParams
from arvg_trt.samples.files import save_sample

from ...families.generators import TinyGenerator, activations
from ...families.tiny import silent


def quantizable(sites: Sequence[Site]) -> list[Site]:
    """Those with a weight that the method does not leave out."""
    return [site for site in sites if site.weight is not None and site.excluded is None]


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def passes(source: TinyGenerator, batch_size: int = 2) -> CalibrationRun:
    return CalibrationRun(source.folder, source.samples, ("full",), batch_size, silent)


def inputs_of(source: TinyGenerator) -> dict[str, np.ndarray]:
    """Activations [N, ..., C] by site."""
    sites = quantizable(source.full_sites)
    path = source.folder / "full.onnx"
    found = activations(path, source.feeds(), [site.input for site in sites])
    return {site.name: found[site.input] for site in sites}


def random_view(site, x: np.ndarray) -> SmoothedInput:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    channels = x.shape[-1]
    view = plain_input(site)
    return SmoothedInput(
        view.tensor,
        view.channel_axis,
        view.token_axis,
        np.exp(rng.normal(0, 0.5, channels)),
        rng.normal(0, 0.5, channels),
        None if view.token_axis is None else np.exp(rng.normal(0, 0.5, x.shape[1])),
    )


def seen(view: SmoothedInput, x: np.ndarray) -> np.ndarray:
    level = 1.0 if view.token_scale is None else view.token_scale[:, None]
    return (x / view.scale - view.shift) / level


def views_of(source: TinyGenerator) -> tuple[dict[str, SmoothedInput], dict[str, np.ndarray]]:
    x = inputs_of(source)
    views = {s.name: random_view(s, x[s.name]) for s in quantizable(source.full_sites)}
    return views, {name: seen(view, x[name]) for name, view in views.items()}


def test_statistics_are_those_of_all_activations(generator: TinyGenerator) -> None:
    found = CalibrationRun(
        generator.folder, generator.samples, (generator.full_sites[0].graph,), 2, silent
    ).input_ranges(generator.full_sites)
    tokens = 0
    for name, x in inputs_of(generator).items():
        axes = tuple(range(x.ndim - 1))
        near(found[name].low, x.min(axis=axes))
        near(found[name].high, x.max(axis=axes))
        near(found[name].square, np.square(x).sum(axis=axes))
        assert found[name].count == x.size // x.shape[-1]
        if f"{name}{POSITION}" in found:
            stats = found[f"{name}{POSITION}"]
            near(stats.low, x.min(axis=(0, 2)))
            near(stats.high, x.max(axis=(0, 2)))
            near(stats.square, np.square(x).sum(axis=(0, 2)))
            assert stats.count == x.shape[0] * x.shape[2]
            tokens += 1
    assert tokens >= 9


@pytest.mark.parametrize("batch_size", [1, 5])
def test_ranges_behind_scale_shift_and_level_are_exact(
    tiny_var: TinyGenerator, batch_size: int
) -> None:
    views, wanted = views_of(tiny_var)
    found = passes(tiny_var, batch_size).ranges(views)
    for name, x in wanted.items():
        near(found[name].low, x.min(axis=tuple(range(x.ndim - 1))))
        if views[name].token_axis is not None:
            near(found[f"{name}{POSITION}"].high, x.max(axis=(0, 2)))


def grid_of(x: np.ndarray, tokens: bool, bits: int, offset: int) -> QParams:
    rng = np.random.default_rng(4)
    length = x.shape[1] if tokens else 1
    step = np.abs(x).max() / (2**bits / 1.6) * np.exp(rng.normal(0, 0.3, length))
    return QParams.from_shift(step, rng.integers(-9, 9, length) + offset, bits)


def points(x: np.ndarray, grid: QParams) -> np.ndarray:
    """The paper's asymmetric grid: clamp(round(x / d) + z, 0, 2^b - 1), in steps."""
    step = grid.scale[:, None] if grid.scale.size > 1 else grid.scale
    zero = 2 ** (grid.bits - 1) + grid.zero_point
    zero = zero[:, None] if zero.size > 1 else zero
    return np.clip(np.rint(x / step) + zero, 0, 2**grid.bits - 1) - zero


@pytest.mark.parametrize(
    ("bits", "offset", "operators"), [(5, 0, True), (8, 0, True), (8, 150, False)]
)
def test_errors_and_gains_are_those_of_the_papers_grids(
    tiny_var: TinyGenerator, bits: int, offset: int, operators: bool
) -> None:
    """Also of a zero point that QuantizeLinear does not have."""
    views, x = views_of(tiny_var)
    tokens = {name: view.token_axis is not None for name, view in views.items()}
    grids = {name: grid_of(value, tokens[name], bits, offset) for name, value in x.items()}
    assert {fits_operators(views[name], grid) for name, grid in grids.items()} == {operators}
    gains = {name: np.linspace(0.5, 2, value.shape[-1]) for name, value in x.items()}
    graph = passes(tiny_var)
    coarse = {name: QParams(2 * g.scale, g.zero_point, g.bits) for name, g in grids.items()}
    both = {name: [grids[name], coarse[name]] for name in grids}
    errors, squares = (graph.clip_errors(views, both, gains, p) for p in ((2, 4), (2,)))
    channels = graph.gps_terms(views, grids)
    for name, value in x.items():
        axes = (0, 2) if tokens[name] else tuple(range(value.ndim))
        for k, grid in enumerate(both[name]):
            step = grid.scale[:, None] if tokens[name] else grid.scale
            error = (points(value, grid) * step - value) * gains[name]
            for power, sums in errors[name].items():
                wanted = np.atleast_1d((error**power).sum(axis=axes))
                np.testing.assert_allclose(sums[k], wanted, rtol=1e-4 * power)
                if power == 2:
                    np.testing.assert_allclose(squares[name][2][k], wanted, rtol=2e-4)
        grid = grids[name]
        steps = value / (grid.scale[:, None] if tokens[name] else grid.scale)
        signal, noise = channels[name]
        over = tuple(range(value.ndim - 1))
        np.testing.assert_allclose(signal, np.square(steps).sum(axis=over), rtol=1e-5)
        error = np.square(points(value, grid) - steps).sum(axis=over)
        np.testing.assert_allclose(noise, error, rtol=1e-3, atol=1e-3 * error.max())


TENSOR_CALLED_LIKE_ITS_SITE = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 4, 3] x) => (float[n, 4, 3] y) <float[n, 4, 3] wq> {
        wq = Relu(x)
        y = Neg(wq)
    }
"""


def test_a_tensor_with_the_name_of_a_site_is_observed(tmp_path: Path) -> None:
    """A user's tensor can be called `wq`, and so can the site that reads it."""
    onnx.save(onnx.parser.parse_model(TENSOR_CALLED_LIKE_ITS_SITE), tmp_path / "g.onnx")
    (tmp_path / "samples").mkdir()
    x = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    save_sample({"x": x}, tmp_path / "samples", 0)
    run = CalibrationRun(tmp_path, tmp_path / "samples", ("g",), 1, silent)
    view = SmoothedInput("wq", 2, scale=np.array([1.0, 2.0, 4.0]))
    found = run.ranges({"wq": view})["wq"]
    near(found.high, np.maximum(x, 0).max(axis=(0, 1)) / view.scale)
    errors = run.clip_errors(
        {"wq": view}, {"wq": [QParams.symmetric(np.array([0.01]), 8)]}, {"wq": np.ones(3)}
    )
    assert np.isfinite(errors["wq"][2]).all()
