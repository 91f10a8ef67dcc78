"""With clip_power 0 grids are the ranges that were seen, and no pass measures what they lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.statistics import POSITION, Statistics
from arvg_trt.numerics.scheme import ActivationFormat, Plan
from arvg_trt.quantize.token_qparams import grid_candidates
from arvg_trt.recipe.quantize import QuantizeOptions

from ..families.generators import TinyGenerator, activations
from ..families.tiny import TinyExport
from ..families.tiny import quantize as quantize_tokenizer
from .test_shared_graphs import quantize, statistics_of


@pytest.fixture
def no_samples(tmp_path: Path) -> Path:
    """A pass over none finds nothing, where something is looked for."""
    (tmp_path / "none").mkdir()
    return tmp_path / "none"


def whole_step(x: np.ndarray, given: ActivationFormat) -> float:
    """Return the scale of 256 levels over all of `x`, zero among them.

    They span its range, or twice its largest magnitude.
    """
    if given.shift == 0:
        return float(np.abs(x).max() / 127)
    return float((max(x.max(), 0) - min(x.min(), 0)) / 255)


def formats(plan: Plan) -> dict[str, ActivationFormat]:
    return {entry.name: entry.activation for entry in plan.sites if entry.activation is not None}


class Runs:
    """Counts the batches that passes over the full graph are told of, and how many begin."""

    def __init__(self) -> None:
        self.count = self.begun = 0

    def __call__(self, task: str, done: int, total: int) -> None:
        full = task == "rows of samples through full"
        self.count += full and done > 0
        self.begun += full and done == 0


def test_a_tensors_grids_are_its_ranges_without_a_run(
    tiny_var: TinyGenerator, tmp_path: Path, no_samples: Path
) -> None:
    plan, results = quantize(
        replace(tiny_var, samples=no_samples),
        tmp_path / "made",
        statistics=statistics_of(tiny_var),
        clip_power=0,
        smoothing=0,
        token_wise=False,
    )
    inputs = {site.name: site.input for site in tiny_var.full_sites}
    found = activations(tiny_var.folder / "full.onnx", tiny_var.feeds(), list(inputs.values()))
    given = formats(plan)
    assert {grid.shift != 0 for grid in given.values()} == {True, False}
    for name, grid in given.items():
        assert grid.scale == pytest.approx(whole_step(found[inputs[name]], grid), rel=1e-5)
    assert all(r.activation_sqnr_db is None for r in results)
    assert any(r.weight_sqnr_db is not None for r in results)


def test_positions_need_a_run_for_their_ranges_alone(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    """Their grids are those that reach as far as was seen, unclipped and not widened."""
    runs, statistics = Runs(), statistics_of(tiny_var)
    plan, results = quantize(
        tiny_var, tmp_path / "made", statistics=statistics, progress=runs, clip_power=0, smoothing=0
    )
    assert runs.count == 1 and runs.begun == 1
    assert all(r.activation_sqnr_db is None for r in results)
    told = 0
    for name, given in formats(plan).items():
        seen = statistics.get(f"{name}{POSITION}")
        if seen is not None:
            (grid,) = grid_candidates(seen.filled(), 8, allow_shift=True, fractions=(1.0,))
            assert given.scale == pytest.approx(np.median(grid.scale), rel=1e-5)
            told += 1
    assert told >= 9


def test_a_tokenizers_grids_are_its_ranges_without_a_run(
    tiny_di: TinyExport, statistics: Statistics, tmp_path: Path, no_samples: Path
) -> None:
    options = QuantizeOptions(smoothing=0, clip_power=0)
    made = quantize_tokenizer(tiny_di, no_samples, statistics, tmp_path, options)
    given = formats(made.plan)
    assert {grid.shift != 0 for grid in given.values()} == {True, False}
    for name, grid in given.items():
        ends = np.stack([statistics[name].low, statistics[name].high])
        assert grid.scale == pytest.approx(whole_step(ends, grid), rel=1e-5)
    assert all(r.activation_sqnr_db is None for r in made.results)
    # Grids that a plan has are kept, also without a run.
    (tmp_path / "again").mkdir()
    again = quantize_tokenizer(
        tiny_di, no_samples, statistics, tmp_path / "again", options, made.plan
    )
    assert formats(again.plan) == given


def test_a_search_of_scales_still_measures(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    """Scales are judged by what grids without clips lose on the other half."""
    runs = Runs()
    quantize(tiny_var, tmp_path / "made", progress=runs, clip_power=0, smoothing="search")
    assert runs.count > 10
