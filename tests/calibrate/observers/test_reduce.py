"""Streaming statistics against a plain float64 computation over all activations."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.clip_error import observe_channel_clip_errors
from arvg_trt.calibrate.observers.min_max import batch_stats, observe_ranges
from arvg_trt.calibrate.observers.run import open_instrumented, require_finite
from arvg_trt.calibrate.observers.smoothed import Scaling
from arvg_trt.calibrate.statistics import Statistics
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.sites import Site, SiteMap, may_be_planned
from arvg_trt.numerics.qparams import QParams
from arvg_trt.samples.files import save_labels, save_sample

from ...families.tiny import TinyExport, silent

Activations = dict[str, dict[str, np.ndarray]]


def observed_sites(site_map: SiteMap, graph: str) -> list[Site]:
    """Sites whose input a plan may quantize: those with a trained weight."""
    return [site for site in site_map.of_graph(graph) if may_be_planned(site)]


def axes_of(source: TinyExport) -> dict[str, dict[str, int]]:
    """Channel axes of the sites' inputs, by graph and tensor."""
    return {
        graph: {site.input: site.channel_axis for site in source.sites.of_graph(graph)}
        for graph in source.sites.graphs
    }


@pytest.fixture(scope="module")
def activations(tiny_di: TinyExport, samples: Path) -> Activations:
    """By graph, then by tensor: every activation of all samples, [N, C, H, W] in float64."""
    files = sorted(samples.iterdir())
    pixels = np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
    feeds: dict[str, np.ndarray] = {"image": (pixels / 127.5 - 1).astype(np.float32)}
    found: Activations = {}
    for graph in ("encoder", "decoder"):
        sites = [s for s in tiny_di.sites.of_graph(graph) if s.weight is not None]
        model = onnx.load(tiny_di.folder / f"{graph}.onnx")
        known = {o.name for o in model.graph.output}
        names = sorted({t for s in sites for t in (s.input, s.output)} | known)
        shape = [None] * 4
        model.graph.output.extend(
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
            for n in names
            if n not in known and n not in feeds
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options)
        names = [o.name for o in session.get_outputs()]
        values = dict(zip(names, session.run(names, feeds), strict=True))
        feeds = {"indices": values["indices"]} if graph == "encoder" else {}
        found[graph] = {n: v.astype(np.float64) for n, v in values.items()}
    return found


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_ranges_and_squares_are_those_of_all_activations(
    tiny_di: TinyExport, statistics: Statistics, activations: Activations
) -> None:
    seen = 0
    for graph, values in activations.items():
        for site in observed_sites(tiny_di.sites, graph):
            for key, tensor in ((site.name, site.input), (f"{site.name}:output", site.output)):
                wanted, stats = values[tensor], statistics[key]
                near(stats.low, wanted.min(axis=(0, 2, 3)))
                near(stats.high, wanted.max(axis=(0, 2, 3)))
                near(stats.square, np.square(wanted).sum(axis=(0, 2, 3)))
                assert stats.count == wanted.size // wanted.shape[1]
                seen += 1
    assert seen == len(statistics) > 50


def test_statistics_do_not_depend_on_the_batch_size(
    tiny_di: TinyExport, samples: Path, statistics: Statistics
) -> None:
    whole = CalibrationRun(tiny_di.folder, samples, tiny_di.sites.graphs, 5, silent).channel_ranges(
        tiny_di.sites
    )
    assert whole.keys() == statistics.keys()
    for name, stats in whole.items():
        near(stats.low, statistics[name].low)
        near(stats.high, statistics[name].high)
        near(stats.square, statistics[name].square)
        assert stats.count == statistics[name].count


GRIDS = [
    QParams.from_shift(np.array([scale]), np.array([shift]), bits)
    for scale, shift, bits in ((0.013, 0, 8), (0.021, 100, 8), (0.05, -5, 4), (0.002, 0, 8))
]


def scaling_of(channels: int, *, centered: bool) -> Scaling:
    center = np.linspace(-1, 2, channels) if centered else None
    return Scaling(np.linspace(0.5, 2, channels), center)


def clip_error(x: np.ndarray, scaling: Scaling, grid: QParams) -> tuple[np.ndarray, np.ndarray]:
    """(smoothed tensor, its distance to the nearest number of the grid), float64."""
    center = 0.0
    if scaling.center is not None:
        center = scaling.center.astype(np.float32).astype(np.float64).reshape(1, -1, 1, 1)
    smoothing = scaling.smoothing.astype(np.float32).astype(np.float64)
    smooth = (x - center) / smoothing.reshape(1, -1, 1, 1)
    scale = grid.scale[0]
    levels = np.arange(2**grid.bits) + grid.low[0]
    return smooth, smooth - np.clip(
        np.rint(smooth / scale) * scale, levels[0] * scale, levels[-1] * scale
    )


@pytest.mark.parametrize(("batch_size", "centered"), [(1, False), (3, False), (3, True)])
def test_clip_errors_are_those_of_all_activations(
    tiny_di: TinyExport, samples: Path, activations: Activations, batch_size: int, centered: bool
) -> None:
    scalings = {
        graph: {
            s.input: scaling_of(s.weight_shape[1], centered=centered)
            for s in observed_sites(tiny_di.sites, graph)[2:]
        }
        for graph in ("encoder", "decoder")
    }
    chosen = {graph: dict.fromkeys(tensors, GRIDS) for graph, tensors in scalings.items()}
    errors = CalibrationRun(
        tiny_di.folder, samples, tiny_di.sites.graphs, batch_size, silent
    ).channel_clip_errors(chosen, scalings, axes_of(tiny_di))
    assert errors.keys() == {f"{g}/{t}" for g, tensors in chosen.items() for t in tensors}
    for graph, tensors in chosen.items():
        for tensor, candidates in tensors.items():
            assert len(errors[f"{graph}/{tensor}"]) == len(candidates)
            for grid, (e2, e4) in zip(candidates, errors[f"{graph}/{tensor}"], strict=True):
                x, error = clip_error(activations[graph][tensor], scalings[graph][tensor], grid)
                # Two float32 runs of a deep graph differ by about 1e-6 of the tensor; by
                # Cauchy-Schwarz that moves sum |e|^p by at most p ||e^(p-1)|| ||x|| 1e-6.
                noise = 3e-6 * np.sqrt((x**2).sum(axis=(0, 2, 3)).max())
                for power, found in ((2, e2), (4, e4)):
                    wanted = (error**power).sum(axis=(0, 2, 3))
                    slope = np.sqrt((error ** (2 * power - 2)).sum(axis=(0, 2, 3)))
                    limit = 1e-5 * wanted + power * slope * noise
                    assert (np.abs(found - wanted) <= limit).all(), (tensor, power)


def test_clip_errors_of_the_image_itself_are_exact(
    tiny_di: TinyExport, samples: Path, activations: Activations
) -> None:
    image = next(s.input for s in tiny_di.sites.sites if s.role == "patcher")
    scaling = scaling_of(3, centered=True)
    chosen, scalings = {"encoder": {image: GRIDS}}, {"encoder": {image: scaling}}
    errors = CalibrationRun(
        tiny_di.folder, samples, tiny_di.sites.graphs, 2, silent
    ).channel_clip_errors(chosen, scalings, axes_of(tiny_di))
    for grid, (e2, e4) in zip(GRIDS, errors[f"encoder/{image}"], strict=True):
        _, error = clip_error(activations["encoder"][image], scaling, grid)
        near(e2, (error**2).sum(axis=(0, 2, 3)))
        near(e4, (error**4).sum(axis=(0, 2, 3)))


def poison(source: Path, folder: Path, graph: str, weight: str) -> None:
    """Copy an export with one NaN in one weight."""
    shutil.copytree(source, folder)
    model = onnx.load(folder / f"{graph}.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == weight:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, folder / f"{graph}.onnx")


@pytest.mark.parametrize(
    "name", ["encoder.mid.block_1.conv1", "decoder.mid.block_2.conv1", "encoder.conv_in"]
)
def test_nan_weight_is_named_by_the_first_tensor_it_reaches_and_the_sample(
    tiny_di: TinyExport, samples: Path, tmp_path: Path, name: str
) -> None:
    site = next(s for s in tiny_di.sites.sites if s.name == name)
    poison(tiny_di.folder, tmp_path / "export", site.graph, f"{name}.weight")
    with pytest.raises(CalibrationError) as caught:
        CalibrationRun(
            tmp_path / "export", samples, tiny_di.sites.graphs, 2, silent
        ).channel_ranges(tiny_di.sites)
    assert f"{site.graph} makes NaN or infinity at {site.output}" in caught.value.what
    assert caught.value.where == "00000.png"


def left_session(
    tiny_di: TinyExport, size: int, images: int, channels: Mapping[str, int], *, clips: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes of what the observers of the encoder send out."""

    def instrument(graph: str, ir_graph) -> None:  # type: ignore[no-untyped-def]
        if clips:
            scalings = {t: Scaling(np.ones(c), None) for t, c in channels.items()}
            candidates = {t: [QParams.symmetric(np.array([0.1]), 8)] for t in channels}
            axes = dict.fromkeys(channels, 1)
            observe_channel_clip_errors(ir_graph, candidates, scalings, axes)
        else:
            observe_ranges(ir_graph, dict.fromkeys(channels, 1))

    session = open_instrumented(tiny_di.folder / "encoder.onnx", "encoder", instrument)
    rng = np.random.default_rng(0)
    feed = rng.uniform(-1, 1, (images, 3, size, size)).astype(np.float32)
    found = session.run({"image": feed}, [o for o in session.outputs if ":" in o])
    return {name: value.shape for name, value in found.items()}


@pytest.mark.parametrize("clips", [False, True])
def test_what_leaves_the_session_does_not_grow_with_the_image(
    tiny_di: TinyExport, clips: bool
) -> None:
    sites = observed_sites(tiny_di.sites, "encoder")
    channels = {s.input: s.weight_shape[1] for s in sites}
    small = left_session(tiny_di, 16, 2, channels, clips=clips)
    assert left_session(tiny_di, 64, 2, channels, clips=clips) == small
    assert len(small) == (2 if clips else 4) * len(channels)
    for name, shape in small.items():
        tensor, kind = name.split(":", 1)
        assert shape == ((4,) if kind == "shape" else (2, channels[tensor]))


def token_graph(folder: Path, tokens: int | str) -> Path:
    """y = x + x of [n, tokens, 5]."""
    shape = ["n", tokens, 5]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"], name="double")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, folder / "g.onnx")
    return folder / "g.onnx"


def observed(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    session = open_instrumented(path, "g", lambda _, graph: observe_ranges(graph, {"y": 2}))
    return session.run({"x": x}, [o for o in session.outputs if ":" in o])


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("declared", "tokens", "parts"), [(48, 48, 24), (34, 34, 17), (37, 37, 0), ("t", 12, 0)]
)
def test_channels_of_tokens_are_reduced_in_parts_to_the_same(
    tmp_path: Path, declared: int | str, tokens: int, parts: int, samples: int
) -> None:
    x = np.random.default_rng(1).normal(0.2, 1, (samples, tokens, 5)).astype(np.float32)
    found = observed(token_graph(tmp_path, declared), x)
    assert found["y:min"].shape == (samples * parts if parts else 1, 5)
    stats, wide = batch_stats(found, "y"), 2 * x.astype(np.float64)
    assert stats.count == samples * tokens
    near(stats.low, wide.min(axis=(0, 1)))
    near(stats.high, wide.max(axis=(0, 1)))
    near(stats.square, np.square(wide).sum(axis=(0, 1)))


@pytest.mark.parametrize(("tokens", "where"), [(48, "second"), (37, "first to third")])
def test_nan_in_the_tokens_of_one_sample_names_it_where_its_rows_are_its_own(
    tmp_path: Path, tokens: int, where: str
) -> None:
    x = np.ones((3, tokens, 5), np.float32)
    x[1, -1, 2] = np.nan
    found = observed(token_graph(tmp_path, tokens), x)
    with pytest.raises(CalibrationError, match="g makes NaN or infinity at y") as caught:
        require_finite(found, ["first", "second", "third"], "g")
    assert caught.value.where == where


def test_a_matrix_whose_rows_happen_to_divide_by_the_batch_is_of_no_one_sample() -> None:
    moments = np.full((6, 6), np.nan)
    with pytest.raises(CalibrationError) as caught:
        require_finite({"site:moments": moments}, ["first", "second", "third"], "g")
    assert caught.value.where == "first to third"


def masked_graph(folder: Path, at_the_end: float) -> Path:
    """x -> rows whose last is NaN inside (0 / 0) and `at_the_end` outside."""
    info = helper.make_tensor_value_info
    keep = np.ones((1, 4, 1), np.float32)
    keep[:, -1] = 0
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "keep"], ["kept"]),
            helper.make_node("Div", ["kept", "keep"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("Where", ["shown", "b", "rest"], ["y"]),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 4, 5])],
        [info("y", TensorProto.FLOAT, ["n", 4, 5])],
        [
            numpy_helper.from_array(keep, "keep"),
            numpy_helper.from_array(keep > 0, "shown"),
            numpy_helper.from_array(np.eye(5, dtype=np.float32), "w"),
            numpy_helper.from_array(np.float32(at_the_end), "rest"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"


MASKED_SITE = Site(
    name="b",
    graph="g",
    role="linear",
    op="MatMul",
    node="b",
    weight="w",
    bias=None,
    input="a",
    output="b",
    weight_shape=(5, 5),
    channel_axis=2,
)


def masked_ranges(folder: Path, at_the_end: float, masked: list[str]) -> Statistics:
    masked_graph(folder, at_the_end)
    samples = folder / "samples"
    samples.mkdir()
    labels = {}
    for k in range(2):
        x = np.random.default_rng(k).normal(3, 0.1, (1, 4, 5)).astype(np.float32)
        labels[save_sample({"x": x}, samples, k).name] = f"feeds:{k + 5}"
    save_labels(samples, labels)
    site_map = SiteMap(sites=(MASKED_SITE,), graphs=("g",))
    return CalibrationRun(folder, samples, site_map.graphs, 1, lambda *_: None).channel_ranges(
        site_map, masked=masked
    )


@pytest.mark.parametrize("at_the_end", [0.0, -np.inf])
def test_nan_that_reaches_no_output_is_left_out(tmp_path: Path, at_the_end: float) -> None:
    masked: list[str] = []
    found = masked_ranges(tmp_path, at_the_end, masked)["b"]
    rows = [
        np.random.default_rng(k).normal(3, 0.1, (1, 4, 5)).astype(np.float32)[0, :3]
        for k in range(2)
    ]
    wide = np.concatenate(rows).astype(np.float64)
    near(found.high, wide.max(axis=0))
    near(found.square, np.square(wide).sum(axis=0))
    assert masked == ["g"] and np.all(found.low == 0)  # what stands for NaN


@pytest.mark.parametrize("at_the_end", [np.nan, np.inf])
def test_nan_in_an_output_names_the_users_sample(tmp_path: Path, at_the_end: float) -> None:
    with pytest.raises(CalibrationError, match="g makes NaN or infinity at a") as caught:
        masked_ranges(tmp_path, at_the_end, [])
    assert caught.value.where == "feeds:5"
