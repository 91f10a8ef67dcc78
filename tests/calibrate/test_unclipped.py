"""With clip_power 0 grids are the ranges that were seen, and no pass measures what they lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.plan import check_plan, make_plan
from arvg_trt.calibrate.quantize import SiteResult, quantize_graphs
from arvg_trt.calibrate.quantize_generator import quantize_generator
from arvg_trt.calibrate.statistics import POSITION, Statistics
from arvg_trt.calibrate.view_passes import collect_full_ranges
from arvg_trt.recipe import QuantizeOptions
from arvg_trt.sites import ActivationFormat, Plan, SiteMap

from ..conftest import TinyExport, silent
from .generators import TinyGenerator, activations


def no_samples(folder: Path) -> Path:
    """A pass over none finds nothing, where something is looked for."""
    (folder / "none").mkdir()
    return folder / "none"


def whole_step(x: np.ndarray, given: ActivationFormat) -> float:
    """Of 256 levels over all of `x`, zero among them: of its range, or of twice its reach."""
    if given.shift == 0:
        return float(np.abs(x).max() / 127)
    return float((max(x.max(), 0) - min(x.min(), 0)) / 255)


def quantize(  # type: ignore[no-untyped-def]
    source: TinyGenerator, folder: Path, *, samples: Path | None = None, **chosen
) -> tuple[dict[str, ActivationFormat], list[SiteResult], int, Statistics]:
    """Formats by site, results, runs of the full graph, and the statistics of all samples."""
    runs: list[int] = []
    options = QuantizeOptions(clip_power=0, weight_bits=8, **chosen)
    planned = SiteMap(sites=source.full_sites)
    statistics = collect_full_ranges(
        source.folder, source.samples, source.full_sites, batch_size=5, progress=silent
    )
    plan, results = quantize_generator(
        source.folder,
        source.samples if samples is None else samples,
        folder,
        source.site_map,
        check_plan(make_plan(planned, options), planned),
        statistics,
        options,
        batch_size=5,
        progress=lambda what, done, of: runs.append(done) if what == "full" else None,
    )
    return formats(plan), results, len(runs), statistics


def formats(plan: Plan) -> dict[str, ActivationFormat]:
    return {entry.name: entry.activation for entry in plan.sites if entry.activation is not None}


def test_a_tensors_grids_are_its_ranges_without_a_run(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    given, results, runs, _ = quantize(
        tiny_var, tmp_path, samples=no_samples(tmp_path), smoothing=0, token_wise=False
    )
    inputs = {site.name: site.input for site in tiny_var.full_sites}
    found = activations(tiny_var.folder / "full.onnx", tiny_var.feeds(), list(inputs.values()))
    assert runs == 0
    assert {grid.shift != 0 for grid in given.values()} == {True, False}
    for name, grid in given.items():
        assert grid.scale == pytest.approx(whole_step(found[inputs[name]], grid), rel=1e-5)
    assert all(r.activation_sqnr_db is None for r in results)
    assert any(r.weight_sqnr_db is not None for r in results)


def test_positions_need_a_run_for_their_ranges_alone(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    """Each position's grid reaches as far as its widest sample, or as usual for its RMS."""
    given, results, runs, statistics = quantize(tiny_var, tmp_path, smoothing=0)
    assert runs == 1
    assert all(r.activation_sqnr_db is None for r in results)
    for name, grid in given.items():
        seen = statistics.get(f"{name}{POSITION}")
        if seen is not None:
            reach = np.maximum(-seen.low, seen.high)
            assert grid.scale is not None
            assert grid.scale * 255 >= np.median(reach) * (1 - 1e-6)


def test_a_tokenizers_grids_are_its_ranges_without_a_run(
    tiny_di: TinyExport, statistics: Statistics, tmp_path: Path
) -> None:
    options = QuantizeOptions(smoothing=0, clip_power=0)
    plan, results = quantize_graphs(
        tiny_di.folder,
        no_samples(tmp_path),
        tmp_path,
        tiny_di.sites,
        check_plan(make_plan(tiny_di.sites, options), tiny_di.sites),
        statistics,
        options,
        batch_size=4,
        progress=silent,
    )
    given = formats(plan)
    assert {grid.shift != 0 for grid in given.values()} == {True, False}
    for name, grid in given.items():
        ends = np.stack([statistics[name].low, statistics[name].high])
        assert grid.scale == pytest.approx(whole_step(ends, grid), rel=1e-5)
    assert all(r.activation_sqnr_db is None for r in results)


def test_a_search_of_scales_still_measures(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    """Scales are judged by what grids without clips lose on the other half."""
    _, _, runs, _ = quantize(tiny_var, tmp_path, smoothing="search")
    assert runs > 10
