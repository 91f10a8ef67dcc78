"""The loss of weights, of candidates with scales per token, is that of the plan's rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.observers.smoothed import Scaling
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.linears import site_weight
from arvg_trt.numerics.gptq import compensate
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.groups import InputGroup, find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.scaling import token_rounding
from arvg_trt.quantize.scaling.choose_per_token import of_samples, search_methods
from arvg_trt.quantize.scaling.fit import Method, round_inputs
from arvg_trt.quantize.scaling.token_rounding import TokenTrial, weight_errors
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files

from ..custom_quantized import CustomGraph, low_rank_graph

MEMORY = 2**30


def options(**changes: object) -> QuantizeOptions:
    few = {"smoothing": "search", "weight_bits": 3, "activation_bits": 4}
    return QuantizeOptions(**(few | changes))  # type: ignore[arg-type]


def only_group(own: CustomGraph, wanted: QuantizeOptions) -> InputGroup:
    entries = check_plan(make_plan(own.site_map, wanted), own.site_map)
    graph = load_graph(own.folder / "g.onnx").graph
    statistics = own.calibration().channel_ranges(own.site_map)
    (group,) = find_groups(graph, own.site_map.sites, entries, statistics)
    return replace(group, tokens=None)


def found(own: CustomGraph, **changes: object) -> Method:
    wanted = options(**changes)
    graph, group = load_graph(own.folder / "g.onnx").graph, only_group(own, wanted)
    (method,) = search_methods(
        graph, [group], own.calibration(8), wanted, max_memory=MEMORY
    ).values()
    return method


def test_methods_are_compared_with_the_rounding_of_the_plan(tmp_path: Path) -> None:
    own, _ = low_rank_graph(tmp_path)
    assert found(own) != found(own, rounding="gptq")


@pytest.mark.parametrize("outputs", [256, 4])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("correct", [False, True])
def test_errors_of_weights_are_those_on_the_other_half(
    tmp_path: Path, rounding: str, correct: bool, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded by sums in float64 over the first half, and measured so on the second.

    Where fewer `outputs` are judged, they stand for all.
    """
    monkeypatch.setattr(token_rounding, "JUDGED_OUTPUTS", outputs)
    own, _ = low_rank_graph(tmp_path)
    wanted = options(rounding=rounding, bias_correction=correct)
    graph, run = load_graph(own.folder / "g.onnx").graph, own.calibration(8)
    fitted, judged = run.first_half(), run.second_half()
    (group,) = of_samples([only_group(own, wanted)], fitted)
    rng = np.random.default_rng(1)
    scaling = Scaling(np.exp(rng.normal(0, 0.5, 32)), rng.normal(0, 1, 32))
    made = round_inputs([group], {group.key: scaling}, fitted, judged, wanted)[group.key]
    (lost,) = weight_errors(
        graph,
        [TokenTrial(group, scaling, made)],
        fitted,
        judged,
        wanted,
        max_memory=MEMORY,
    ).values()

    x = np.concatenate([load_sample(path)["x"] for path in sample_files(own.samples)])
    assert scaling.center is not None
    scaled = ((x - scaling.center) / scaling.smoothing).astype(np.float64)
    first, second = scaled[:12].reshape(-1, 32), scaled[12:].reshape(-1, 32)
    noise = float(made.qparams.scale[0]) ** 2 / 12 * np.eye(32) * len(first)
    weight = (site_weight(graph, group.sites[0]) * scaling.smoothing).astype(np.float32)
    codes = quantize_weight(weight, WeightFormat(bits=3))
    if rounding == "gptq":
        codes = compensate(weight, codes, first.T @ first + noise, len(first), (1.0,))
    off = weight.astype(np.float64) - codes.dequantize()
    if rounding == "nearest" and not correct:  # nothing is fitted, and nothing left out
        square = np.square(x[:12].reshape(-1, 32) / scaling.smoothing).sum(axis=0)
        assert lost == pytest.approx(float(np.square(off).sum(axis=0) @ square) / 12, rel=1e-4)
        return
    off = off[:: 16 // min(outputs, 16)]
    wrong = second @ off.T - (first @ off.T).mean(axis=0) * correct
    total = np.square(wrong).sum() + np.trace(off @ noise @ off.T)
    assert lost == pytest.approx(float(total) * 16 / len(off) / 12, rel=1e-3)
