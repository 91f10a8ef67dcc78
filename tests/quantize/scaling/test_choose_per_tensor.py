"""Scalings of a user's own graph, judged on samples that they were not fitted to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvg_trt.calibrate.observers.smoothed import Scaling
from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.numerics.weight import QuantizedWeight
from arvg_trt.quantize.scaling import trial_parts, trials
from arvg_trt.quantize.scaling.choose_per_tensor import NONE, best_way, split_samples, thinned
from arvg_trt.quantize.scaling.distances import distance, ratio
from arvg_trt.quantize.scaling.predicted import Way
from arvg_trt.quantize.scaling.trials import judged_errors
from arvg_trt.quantize.separate_graphs import round_to_nearest

from ...families.custom.models import Node, small_graph
from ..custom_quantized import CustomGraph, custom_graph

PREDICTED, MOVED = Way("predicted"), Way("predicted", centered=True)
NEVER_BELOW = 0.3  # dB


def linears(folder: Path, widths: list[int], between: str, seed: int) -> Path:
    """Linears with biases, an activation function between them."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []
    held = {}
    source = "x"
    for k, (one, other) in enumerate(pairwise(widths)):
        last = k == len(widths) - 2
        held[f"w{k}"] = (rng.normal(0, one**-0.5, (one, other))).astype(np.float32)
        held[f"b{k}"] = rng.normal(0, 0.5, other).astype(np.float32)
        nodes.append(("MatMul", [source, f"w{k}"], f"m{k}", {}))
        nodes.append(("Add", [f"m{k}", f"b{k}"], "y" if last else f"a{k}", {}))
        if not last:
            nodes.append((between, [f"a{k}"], f"t{k}", {}))
            source = f"t{k}"
    return small_graph(folder / "g.onnx", nodes, held, x=("n", widths[0]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_few_rows_never_cost_more_than_no_smoothing(tmp_path: Path, rows: int, seed: int) -> None:
    """Where the least predicted error is taken, held-out rows lose 2 to 10 dB."""
    width = 24
    rng = np.random.default_rng(seed)
    channels = np.exp(rng.normal(0, 1, width))

    def drawn(count: int) -> np.ndarray:
        return (rng.standard_t(4, (count, width)) * channels).astype(np.float32)

    own = custom_graph(linears(tmp_path, [width, 48, 48, 8], "Relu", seed), drawn(rows))
    held_out = drawn(300)
    found = {s: own.sqnr(tmp_path / f"q{s}", held_out, smoothing=s) for s in (0.0, "search")}
    assert found["search"] >= found[0.0] - NEVER_BELOW


@pytest.mark.parametrize("seed", [0, 1])
def test_behind_tanh_no_scale_is_taken_that_loses(tmp_path: Path, seed: int) -> None:
    """All channels of a Tanh reach nearly 1: half the range says otherwise of one-sided ones."""
    rng = np.random.default_rng(seed)
    path = linears(tmp_path, [32, 64, 16], "Tanh", seed)
    own = custom_graph(path, rng.normal(0, 2, (48, 32)).astype(np.float32))
    held_out = rng.normal(0, 2, (300, 32)).astype(np.float32)
    none, found = (own.sqnr(tmp_path / f"q{s}", held_out, smoothing=s) for s in (0.0, "search"))
    assert found >= none - NEVER_BELOW and none > 30


def outliers(folder: Path) -> tuple[CustomGraph, np.ndarray]:
    """One channel 50 times as wide in all samples: what smoothing is for."""
    rng = np.random.default_rng(0)

    def drawn(count: int) -> np.ndarray:
        x = rng.normal(0, 1, (count, 6, 24)).astype(np.float32)
        x[..., 5] *= 50
        return x

    weight = rng.normal(0, 0.2, (24, 16)).astype(np.float32)
    weight[5] /= 50
    path = small_graph(
        folder / "g.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": weight}, x=("n", 6, 24)
    )
    return custom_graph(path, drawn(32)), drawn(100)


def test_an_outlier_channel_is_smoothed(tmp_path: Path) -> None:
    own, held_out = outliers(tmp_path)
    none, found = (own.sqnr(tmp_path / f"q{s}", held_out, smoothing=s) for s in (0.0, "search"))
    assert found > none + 10


def test_the_plan_that_is_left_gives_the_same_graph_again(tmp_path: Path) -> None:
    own, _ = outliers(tmp_path)
    plan, _ = own.quantize(tmp_path / "a", smoothing="search")
    (entry,) = plan.sites
    assert entry.smoothing in (0.5, "predicted") and entry.activation is not None
    again, _ = own.quantize(tmp_path / "b", plan=plan)
    assert again == plan
    one, other = ((tmp_path / n / "g.onnx").read_bytes() for n in "ab")
    assert one == other


def test_one_sample_is_not_scaled(tmp_path: Path) -> None:
    own, _ = outliers(tmp_path)
    for path in sorted(own.samples.iterdir())[1:]:
        path.unlink()
    assert set(own.search(smoothing="search").values()) == {NONE}


def test_candidates_of_one_large_weight_are_judged_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of protobuf holds 2 GB: six copies of a weight of 2 GB did not serialize."""
    own, _ = outliers(tmp_path)
    at_once = own.search(smoothing="search")
    runs = []

    def counted(*args: Any) -> dict[str, dict[Way, float]]:
        runs.append([list(ways) for ways in args[3].values()])
        return judged_errors(*args)

    monkeypatch.setattr(trial_parts, "judged_errors", counted)
    monkeypatch.setattr(trial_parts, "TRIAL_BYTES", 2 * 24 * 16)
    assert own.search(smoothing="search") == at_once
    assert len(runs) > 4 and {len(ways) for (ways,) in runs} <= {1, 2}


def test_a_fold_fits_each_candidate_once_and_unscaled_weights_are_rounded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = outliers(tmp_path)
    before = own.search(smoothing="search")
    fitted: list[tuple[int, Way]] = []
    rounded: list[Scaling | None] = []
    fit = Way.fit

    def counted_fit(way: Way, stats: TensorStats, *rest: Any) -> Scaling:
        fitted.append((id(stats), way))
        return fit(way, stats, *rest)

    def counted_rounding(*args: Any) -> QuantizedWeight:
        rounded.append(args[-1])
        return round_to_nearest(*args)

    monkeypatch.setattr(Way, "fit", counted_fit)
    monkeypatch.setattr(trials, "round_to_nearest", counted_rounding)
    assert own.search(smoothing="search") == before
    of_folds = [pair for pair in fitted if fitted.count(pair) > 1]
    assert not of_folds and len(fitted) > 8
    assert rounded.count(None) == 1 and len(rounded) > 4


STRICT = {"gain_db": 0.3, "center_db": 1.0}


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ([{NONE: 1.0, PREDICTED: 1.0}] * 2, NONE),  # a tie
        ([{NONE: 1.0, PREDICTED: 0.98}] * 2, NONE),  # within what halves tell
        ([{NONE: 1.0, PREDICTED: 0.1}, {NONE: 1.0, PREDICTED: 1.01}], NONE),  # on one half alone
        ([{NONE: 1.0, PREDICTED: 0.5}] * 2, PREDICTED),
        ([{NONE: 1.0, PREDICTED: 0.5, MOVED: 0.45}] * 2, PREDICTED),  # a centre costs nodes
        ([{NONE: 1.0, PREDICTED: 0.5, MOVED: 0.3}] * 2, MOVED),
        ([{NONE: 0.0, PREDICTED: 0.0}] * 2, NONE),
        ([{NONE: 0.0, PREDICTED: 1e-9}] * 2, NONE),
    ],
)
def test_none_wins_unless_every_half_gains(errors: list[dict[Way, float]], best: Way) -> None:
    assert best_way(errors, **STRICT) == best


def test_a_free_centre_needs_no_decibel() -> None:
    errors = [{NONE: 1.0, PREDICTED: 0.5, MOVED: 0.45}] * 2
    assert best_way(errors, gain_db=0.3, center_db=0.0) == MOVED


def test_nothing_to_nothing_is_no_difference() -> None:
    assert ratio(0.0, 0.0) == 1.0 and ratio(1.0, 0.0) == np.inf and ratio(1.0, 4.0) == 0.25
    assert ratio(np.nan, 1.0) == ratio(np.inf, np.inf) == np.inf


@pytest.mark.parametrize("count", [2, 3, 8, 33, 500])
@pytest.mark.parametrize("most", [8, 256])
def test_nothing_is_judged_on_what_it_was_fitted_to(count: int, most: int) -> None:
    samples = list(range(count))
    splits = split_samples(count, most)
    assert len(splits) == (4 if 2 < count <= 2 * most else 2)
    for fitted, judged in splits:
        seen, left = set(samples[fitted]), samples[thinned(judged, most)]
        assert seen and left and not seen & set(left)
        assert len(left) <= most and set(samples[judged]) | seen == set(samples)


def test_outputs_behind_a_mask_are_compared_where_they_are_finite() -> None:
    exact = {"logits": [np.array([1.0, -np.inf, 2.0])]}
    found = {"logits": [np.array([1.0, -np.inf, 2.5])]}
    assert distance(found, exact).mean == pytest.approx(0.25 / 5)
    assert np.isnan(distance({"logits": [np.array([1.0, -np.inf, np.nan])]}, exact).mean)
