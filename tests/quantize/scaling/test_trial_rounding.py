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
from arvg_trt.quantize.groups import find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.scaling.predicted import Way
from arvg_trt.quantize.scaling.trial_rounding import round_trials, scaled_moments
from arvg_trt.quantize.scaling.trials import Fold, TrialWeights
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files

from ...families.custom.models import small_graph
from ..custom_quantized import CustomGraph, custom_graph, decibel, run

FEW_BITS = {"smoothing": "search", "weight_bits": 3, "activation_bits": 4}


@pytest.fixture
def planted(tmp_path: Path) -> tuple[CustomGraph, np.ndarray]:
    """A linear whose 32 inputs have four degrees of freedom, which GPTQ makes the most of."""
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 1, (4, 32))

    def drawn(count: int) -> np.ndarray:
        x = rng.normal(0, 1, (count, 16, 4)) @ mix + rng.normal(0, 0.05, (count, 16, 32))
        x[..., 5] *= 4
        return x.astype(np.float32)

    held = {"w": rng.normal(0, 0.2, (32, 16)).astype(np.float32)}
    path = small_graph(
        tmp_path / "g.onnx", [("MatMul", ["x", "w"], "y", {})], held, x=("n", 16, 32)
    )
    return custom_graph(path, drawn(24)), drawn(100)


def chosen(own: CustomGraph, **options: object) -> Way:
    """Return the scaling of the only input."""
    (way,) = own.search(**(FEW_BITS | options)).values()
    return way


def rounded(own: CustomGraph, ways: list[Way], **options: object) -> TrialWeights:
    """Round with candidates that are fitted to the first half."""
    wanted = QuantizeOptions(**(FEW_BITS | options))  # type: ignore[arg-type]
    entries = check_plan(make_plan(own.site_map, wanted), own.site_map)
    half = slice(0, 12)
    run_of_all = own.calibration(8)
    fold = Fold(run_of_all.of(half).channel_ranges(own.site_map), half, slice(12, 24))
    graph = load_graph(own.folder / "g.onnx").graph
    groups = find_groups(graph, own.site_map.sites, entries, fold.fitted)
    return round_trials(run_of_all, graph, groups, {g.key: ways for g in groups}, fold, wanted)


def test_what_gptq_evens_out_is_no_reason_against_a_scaling(
    planted: tuple[CustomGraph, np.ndarray], tmp_path: Path
) -> None:
    """To nearest another candidate is best; rounded by GPTQ it loses on other samples."""
    own, held_out = planted
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
    found = scaled_moments(given, origin, scale, center, grid)
    shift = 0 if center is None else center[:, None]
    wanted = rows(x / scale[:, None] - shift)
    noise = 500 * grid.scale**2 / 12 * np.eye(6 * taps)  # type: ignore[operator]
    reach = np.sqrt(np.square(wanted).sum(axis=0))
    assert found.square is not None and found.plain is not None and found.count == 500
    off = np.abs(found.square - wanted.T @ wanted - noise) / np.outer(reach, reach)
    assert off.max() < 1e-9
    np.testing.assert_allclose(found.plain, wanted.sum(axis=0), rtol=1e-9, atol=1e-6)
