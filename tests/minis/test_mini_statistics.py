"""A trained generator's statistics, and errors at given clips, against float64 numpy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.smoothed import plain_input
from arvg_trt.calibrate.statistics import POSITION, load_statistics
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.sites import Site, load_sites
from arvg_trt.quantize.token_qparams import grid_candidates
from arvg_trt.samples.files import load_sample, sample_files, save_sample

from ..command_line import arvg
from ..families.generators import activations
from ..families.tiny import silent
from .minis import Mini


@pytest.fixture(scope="module")
def calibrated(mini_of: Callable[[str], Mini], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("statistics") / "ws"
    shutil.copytree(mini_of("var").workspace, root)
    assert arvg("calibrate", root, "--samples", 8, "--batch-size", 8).code == 0
    return root


@pytest.fixture(scope="module")
def seen(calibrated: Path) -> tuple[list[Site], dict[str, np.ndarray]]:
    """The linears of the last block and the head, and what goes into them, [N, T, C]."""
    sites = [
        site
        for site in load_sites(calibrated / "export").of_graph("full")
        if site.weight
        and site.token_axis is not None
        and site.name.startswith(("blocks.5", "head"))
    ]
    rows = [load_sample(path) for path in sample_files(calibrated / "calibrate" / "samples")]
    feeds = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    path = calibrated / "export" / "full.onnx"
    return sites, activations(path, feeds, [site.input for site in sites])


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_statistics_are_those_of_all_activations(
    calibrated: Path, seen: tuple[list[Site], dict[str, np.ndarray]]
) -> None:
    statistics = load_statistics(calibrated / "calibrate" / "statistics.safetensors")
    sites, inputs = seen
    assert len(sites) == 5
    for site in sites:
        x = inputs[site.input]
        for key, axes in ((site.name, (0, 1)), (f"{site.name}{POSITION}", (0, 2))):
            near(statistics[key].low, x.min(axis=axes))
            near(statistics[key].high, x.max(axis=axes))
            near(statistics[key].square, np.square(x).sum(axis=axes))
            assert statistics[key].count * len(statistics[key].low) == x.size


def test_errors_are_those_at_the_same_clips(
    calibrated: Path, seen: tuple[list[Site], dict[str, np.ndarray]]
) -> None:
    statistics = load_statistics(calibrated / "calibrate" / "statistics.safetensors")
    sites, inputs = seen
    views = {site.name: plain_input(site) for site in sites}
    grids = {
        name: grid_candidates(
            statistics[f"{name}{POSITION}"], 6, allow_shift=True, fractions=(1, 0.7)
        )
        for name in views
    }
    gains = {site.name: np.ones(inputs[site.input].shape[2]) for site in sites}
    samples = calibrated / "calibrate" / "samples"
    passes = CalibrationRun(calibrated / "export", samples, ("full",), 8, silent)
    errors = passes.clip_errors(views, grids, gains, (2, 4))
    for site in sites:
        for k, grid in enumerate(grids[site.name]):
            step = grid.scale[:, None]
            low = (-grid.zero_point - 2 ** (grid.bits - 1))[:, None]
            x = inputs[site.input]
            error = np.clip(np.rint(x / step), low, low + 2**grid.bits - 1) * step - x
            for power, found in errors[site.name].items():
                wanted = (error**power).sum(axis=(0, 2))
                np.testing.assert_allclose(found[k], wanted, rtol=1e-5 * power, atol=1e-12)


@pytest.mark.parametrize("bad", [[2], [0, 1, 2, 3]], ids=["one sample", "all samples"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sample_that_is_not_finite_is_named_with_the_site_it_reaches(
    bad: list[int], value: float, calibrated: Path, tmp_path: Path
) -> None:
    for k, path in enumerate(sample_files(calibrated / "calibrate" / "samples")[:4]):
        row = load_sample(path)
        if k in bad:
            row["features"][0, 3, 5] = value
        save_sample(row, tmp_path, k)
    sites = load_sites(calibrated / "export").of_graph("full")
    views = {s.name: plain_input(s) for s in sites if s.weight and s.name.startswith("blocks.")}
    passes = CalibrationRun(calibrated / "export", tmp_path, ("full",), 2, silent)
    with pytest.raises(CalibrationError, match=r"at blocks\.0\.attn\.mat_qkv") as caught:
        passes.ranges(views)
    assert caught.value.where == f"{bad[0]:05d}.safetensors"
