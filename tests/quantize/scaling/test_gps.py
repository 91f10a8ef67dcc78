"""GPS for inputs that are rounded per tensor: custom graphs, and attention in tokenizers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.smoothed import plain_input
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.linears import site_weight
from arvg_trt.numerics.scheme import Plan, WeightFormat
from arvg_trt.numerics.weight import quantize_weight
from arvg_trt.quantize.groups import InputGroup, find_groups
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.scaling.choose_per_tensor import GAIN_WAYS, ways_for
from arvg_trt.quantize.scaling.fit import weight_energies
from arvg_trt.quantize.scaling.gps import gain_scalings_of
from arvg_trt.quantize.scaling.predicted import Way
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files

from ...families.custom.models import small_graph
from ...families.tiny import TinyExport, silent
from ..custom_quantized import CustomGraph, custom_graph

WIDTH, OUTPUTS = 12, 8


def heavy_tailed(folder: Path, operator: str = "MatMul") -> CustomGraph:
    """A product whose channels have tails and weights of their own."""
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (16, 10, WIDTH)) * np.exp(rng.normal(0, 1.5, WIDTH))
    weight = rng.normal(0, 0.3, (WIDTH, OUTPUTS)) * np.exp(rng.normal(0, 1, (WIDTH, 1)))
    held = {"w": weight.astype(np.float32)}
    shape: tuple[object, ...] = ("n", "t", WIDTH)
    if operator == "Conv":
        held = {"w": weight.T.reshape(OUTPUTS, WIDTH, 1, 1).astype(np.float32)}
        x, shape = x.transpose(0, 2, 1)[..., None], ("n", WIDTH, "t", 1)
    path = small_graph(folder / "g.onnx", [(operator, ["x", "w"], "y", {})], held, x=shape)
    return custom_graph(path, x.astype(np.float32))


def group_of(own: CustomGraph, **options: object) -> tuple[InputGroup, QuantizeOptions]:
    wanted = QuantizeOptions(**options)  # type: ignore[arg-type]
    entries = check_plan(make_plan(own.site_map, wanted), own.site_map)
    statistics = own.calibration().channel_ranges(own.site_map)
    graph = load_graph(own.folder / "g.onnx").graph
    (group,) = find_groups(graph, own.site_map.sites, entries, statistics)
    return group, wanted


def symmetric(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to nearest on the grid of the largest magnitude."""
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    return np.clip(np.rint(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step


def test_scales_are_those_of_the_formula(tmp_path: Path) -> None:
    """PTQ4ARVG's s_r (|X_i|^2 |dW_i|^2 / (|dX_i|^2 |Q(W)_i|^2))^(1/4), in float64 from the rows."""
    own = heavy_tailed(tmp_path)
    group, options = group_of(own, smoothing="gps")
    graph = load_graph(own.folder / "g.onnx").graph
    way = Way("gps")
    statistics = own.calibration().channel_ranges(own.site_map)
    found = gain_scalings_of(
        own.calibration(), {"g": graph}, [group], {group.key: [way]}, statistics, options
    )[group.key, way]
    assert found.center is None
    rows = [load_sample(path)["x"] for path in sample_files(own.samples)]
    x = np.concatenate(rows).reshape(-1, WIDTH).astype(np.float64)
    weight = site_weight(graph, group.sites[0]).astype(np.float64)
    first = np.abs(x).max(axis=0) ** 0.5 / np.abs(weight).max(axis=0) ** 0.5
    first /= np.exp(np.log(first).mean())
    scaled, folded = x / first, weight * first
    x_error = scaled - symmetric(scaled, 8)
    near = quantize_weight(folded.astype(np.float32), WeightFormat(bits=8)).dequantize()
    above = np.square(scaled).sum(axis=0) * np.square(folded - near).sum(axis=0)
    below = np.square(x_error).sum(axis=0) * np.square(near).sum(axis=0)
    factor = (above / below) ** 0.25
    # The widest channel keeps a scale of its own token's, sqrt(max|X| / max|W|) of half its range.
    width = scaled.max(axis=0) - scaled.min(axis=0)
    reference = int(np.argmax(width))
    start = np.sqrt(width[reference] / 2 / np.abs(folded).max(axis=0)[reference])
    factor *= start
    factor[reference] = start
    wanted = first * factor
    wanted /= np.exp(np.log(wanted).mean())
    np.testing.assert_allclose(found.smoothing, wanted, rtol=0.02)


def test_a_pointwise_convolution_has_the_energies_of_the_linear(tmp_path: Path) -> None:
    (tmp_path / "linear").mkdir()
    (tmp_path / "conv").mkdir()
    scale = np.exp(np.random.default_rng(1).normal(0, 1, WIDTH))
    found = {}
    for name, operator in (("linear", "MatMul"), ("conv", "Conv")):
        own = heavy_tailed(tmp_path / name, operator)
        group, _ = group_of(own, smoothing=0.5)
        found[name] = weight_energies(load_graph(own.folder / "g.onnx").graph, group, scale)
    np.testing.assert_allclose(found["conv"], found["linear"], rtol=1e-12)


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_energies_of_a_large_weight_are_summed_in_parts(
    tmp_path: Path, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = heavy_tailed(tmp_path, operator)
    group, _ = group_of(own, smoothing=0.5)
    graph = load_graph(own.folder / "g.onnx").graph
    scale = np.exp(np.random.default_rng(1).normal(0, 1, WIDTH))
    whole = weight_energies(graph, group, scale)
    outputs = group.sites[0].weight_shape[0 if operator == "Conv" else 1]
    monkeypatch.setattr("arvg_trt.numerics.parts.PART", 3 * max(outputs, WIDTH))
    for part, wanted in zip(weight_energies(graph, group, scale), whole, strict=True):
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize(("smoothing", "tried"), [("gps", True), ("search", False)])
def test_a_plan_that_names_gps_has_it_tried(tmp_path: Path, smoothing: str, tried: bool) -> None:
    group, options = group_of(heavy_tailed(tmp_path), smoothing=smoothing)
    ways = ways_for(group, options)
    assert Way(None) in ways and (GAIN_WAYS[0] in ways) is tried


def test_a_convolution_outside_an_attention_takes_no_gps(tmp_path: Path) -> None:
    group, options = group_of(heavy_tailed(tmp_path, "Conv"), smoothing="gps")
    assert not set(GAIN_WAYS) & set(ways_for(group, options))


def test_the_projections_of_a_tokenizers_attention_try_gps(
    tiny_di: TinyExport, samples: Path
) -> None:
    run = CalibrationRun(tiny_di.folder, samples, ("encoder", "decoder"), 4, silent)
    options = QuantizeOptions(smoothing="gps", attention_inputs=True)
    entries = check_plan(make_plan(tiny_di.sites, options), tiny_di.sites)
    graph = load_graph(tiny_di.folder / "decoder.onnx").graph
    sites = tiny_di.sites.of_graph("decoder")
    groups = find_groups(graph, sites, entries, run.channel_ranges(tiny_di.sites))
    tried = {g.sites[0].role for g in groups if GAIN_WAYS[0] in ways_for(g, options)}
    assert tried == {"q", "proj"}  # k and v read what q does


def test_a_plan_with_a_scale_is_obeyed_and_gives_the_same_graph_again(tmp_path: Path) -> None:
    own = heavy_tailed(tmp_path)
    found, _ = own.quantize(tmp_path / "half", smoothing=0.5)
    entry = msgspec.structs.replace(found.sites[0], smoothing="gps")
    plan, _ = own.quantize(tmp_path / "a", plan=Plan(sites=(entry,)))
    assert plan.sites[0].smoothing == "gps"
    half, gps = (load_file(tmp_path / n / "weights.safetensors") for n in ("half", "a"))
    name = f"{entry.name}.smoothing"
    assert not np.allclose(half[name], gps[name], rtol=0.05)
    again, _ = own.quantize(tmp_path / "b", plan=plan)
    assert again == plan
    one, other = ((tmp_path / n / "g.onnx").read_bytes() for n in "ab")
    assert one == other


def test_a_graph_that_others_feed_is_observed_alone(tiny_di: TinyExport, samples: Path) -> None:
    """A decoder's ranges are those of the run of both graphs; the encoder has no output added."""
    run = CalibrationRun(tiny_di.folder, samples, ("encoder", "decoder"), 4, silent)
    sites = tiny_di.sites.of_graph("decoder")
    statistics = run.channel_ranges(tiny_di.sites)
    found = run.inside("decoder").ranges({site.name: plain_input(site) for site in sites[1:4]})
    assert len(found) == 3
    for name, stats in found.items():
        np.testing.assert_array_equal(stats.high, statistics[name].high)
        assert stats.count == statistics[name].count
