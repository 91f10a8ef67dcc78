"""Candidate scalings are judged with the rounding that the plan asks for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from arvg_trt.calibrate.observers.hessian import HessianSums
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.linears import site_weight
from arvg_trt.numerics.scheme import ActivationFormat, Plan
from arvg_trt.quantize.groups import InputGroup, find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.scaling import choose_per_tensor
from arvg_trt.quantize.scaling.moments import scaled_moments
from arvg_trt.quantize.scaling.predicted import Way
from arvg_trt.quantize.scaling.trial_rounding import grid_noise, round_trials
from arvg_trt.quantize.scaling.trials import Fold, TrialWeights, fit_ways, judged_errors
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files

from ..custom_quantized import CustomGraph, decibel, low_rank_graph, run

FEW_BITS = {"smoothing": "search", "weight_bits": 3, "activation_bits": 4}


@pytest.fixture
def planted(tmp_path: Path) -> tuple[CustomGraph, np.ndarray]:
    return low_rank_graph(tmp_path)


def chosen(own: CustomGraph, **options: object) -> Way:
    """Return the scaling of the only input."""
    (way,) = own.search(**(FEW_BITS | options)).values()
    return way


def rounded(own: CustomGraph, ways: list[Way], **options: object) -> TrialWeights:
    """Round with candidates that are fitted to the first half."""
    group, fold, wanted = halved(own, **options)
    graph = load_graph(own.folder / "g.onnx").graph
    return round_trials(own.calibration(8), graph, [group], {group.key: ways}, fold, wanted)


def halved(own: CustomGraph, **options: object) -> tuple[InputGroup, Fold, QuantizeOptions]:
    """Return the only input, and a fold whose first half is fitted to and whose second judges."""
    wanted = QuantizeOptions(**(FEW_BITS | options))  # type: ignore[arg-type]
    entries = check_plan(make_plan(own.site_map, wanted), own.site_map)
    half = slice(0, 12)
    fold = Fold(own.calibration(8).of(half).channel_ranges(own.site_map), half, slice(12, 24))
    graph = load_graph(own.folder / "g.onnx").graph
    (group,) = find_groups(graph, own.site_map.sites, entries, fold.fitted)
    return group, fold, wanted


@pytest.mark.parametrize("alone", [False, True])
def test_what_gptq_evens_out_is_no_reason_against_a_scaling(
    planted: tuple[CustomGraph, np.ndarray],
    tmp_path: Path,
    alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To nearest another candidate is best; rounded by GPTQ it loses on other samples.

    Inputs are judged `alone` where a graph is too large to be judged as a whole.
    """
    own, held_out = planted
    if alone:
        monkeypatch.setattr(choose_per_tensor, "LARGEST_COPY", 0)
    to_nearest, found = chosen(own), chosen(own, rounding="gptq")
    assert to_nearest != found
    options = FEW_BITS | {"rounding": "gptq"}
    own.quantize(tmp_path / "taken", **options)
    other, _ = own.quantize(tmp_path / "other", **FEW_BITS)
    (entry,) = other.sites
    other = Plan(sites=(msgspec.structs.replace(entry, rounding="gptq"),))
    own.quantize(tmp_path / "other_gptq", plan=other, **options)
    exact = own.run(held_out)
    gain = decibel(run(tmp_path / "taken", held_out), exact) - decibel(
        run(tmp_path / "other_gptq", held_out), exact
    )
    assert gain > 0.3


def test_nothing_is_summed_for_what_is_rounded_to_nearest(
    planted: tuple[CustomGraph, np.ndarray],
) -> None:
    assert rounded(planted[0], [Way(None), Way(0.5)]) == {}


def test_trials_are_rounded_with_the_rows_that_they_are_fitted_to(
    planted: tuple[CustomGraph, np.ndarray],
) -> None:
    own, _ = planted
    rows = np.concatenate([load_sample(path)["x"] for path in sample_files(own.samples)[:12]])
    x = rows.reshape(-1, 32).astype(np.float64)
    site = own.site_map.sites[0]
    weight = site_weight(load_graph(own.folder / "g.onnx").graph, site).astype(np.float64)
    lost = {}
    for rounding in ("nearest", "gptq"):
        (found,) = rounded(own, [Way(None)], rounding=rounding, bias_correction=True).values()
        off = weight - found.weight.dequantize()
        lost[rounding] = float(np.sum(np.square(x @ off.T)))
        np.testing.assert_allclose(found.bias_shift, off @ x.mean(axis=0), rtol=1e-3, atol=1e-5)
    assert lost["gptq"] < 0.3 * lost["nearest"]


@pytest.mark.parametrize("correct", [False, True])
def test_an_input_is_judged_by_the_other_half_and_the_weights_of_the_plan(
    planted: tuple[CustomGraph, np.ndarray], correct: bool
) -> None:
    """Errors equal sums in float64 over the rows of the second half."""
    own, _ = planted
    group, fold, wanted = halved(own, rounding="gptq", bias_correction=correct)
    ways = {group.key: [Way(None), Way(0.5), Way(0.5, centered=True)]}
    run_of_all, graph = own.calibration(8), load_graph(own.folder / "g.onnx").graph
    codes = round_trials(run_of_all, graph, [group], ways, fold, wanted)
    judged = judged_errors(run_of_all, [group], fold, ways, codes, wanted)[group.key]
    rows = np.concatenate([load_sample(path)["x"] for path in sample_files(own.samples)[12:]])
    x = rows.reshape(-1, 32).astype(np.float64)
    weight = site_weight(graph, group.sites[0]).astype(np.float64)
    trials = fit_ways(graph, group, ways[group.key], fold, wanted)
    for way, trial in zip(ways[group.key], trials, strict=True):
        rounded_to, scale = codes[group.name, way], trial.scaling.smoothing
        center = np.zeros(32) if trial.scaling.center is None else trial.scaling.center
        step, shift = trial.activation.scale, trial.activation.shift
        assert step is not None
        steps = np.rint((x - center) / scale / step)
        seen = np.clip(steps, shift - 8, shift + 7) * step
        off = x @ weight.T - seen @ rounded_to.weight.dequantize().T - weight @ center
        if correct:
            assert rounded_to.bias_shift is not None
            off -= rounded_to.bias_shift
        assert judged[way] == pytest.approx(float(np.sum(np.square(off))), rel=0.01)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("taps", [1, 4])
def test_moments_of_a_candidate_are_those_of_its_scaled_input(taps: int, centered: bool) -> None:
    """Channels lie far from zero and have tails."""
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (500, 6, taps)) + 1000 * np.arange(6)[:, None]
    scale = np.exp(rng.normal(0, 1, 6)).astype(np.float32)
    center = (x.max(axis=(0, 2)) / scale).astype(np.float32) if centered else None
    origin = x[:9].mean(axis=(0, 2))
    grid = ActivationFormat(bits=8, scale=0.01)

    def rows(values: np.ndarray) -> np.ndarray:
        return values.reshape(500, -1)

    near = rows(x - origin.astype(np.float32)[:, None])
    given = HessianSums(500, near.T @ near, near.sum(axis=0), near.sum(axis=0))
    found = scaled_moments(given, origin, scale, center, grid_noise(grid))
    shift = 0 if center is None else center[:, None]
    wanted = rows(x / scale[:, None] - shift)
    noise = 500 * grid.scale**2 / 12 * np.eye(6 * taps)  # type: ignore[operator]
    reach = np.sqrt(np.square(wanted).sum(axis=0))
    assert found.square is not None and found.plain is not None and found.count == 500
    off = np.abs(found.square - wanted.T @ wanted - noise) / np.outer(reach, reach)
    assert off.max() < 1e-9
    np.testing.assert_allclose(found.plain, wanted.sum(axis=0), rtol=1e-9, atol=1e-6)
