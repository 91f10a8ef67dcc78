from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.build import (
    BuildResult,
    TimingCache,
    asks_for_types,
    builder_config,
)
from arvg_trt.engines.tensorrt.engine import EngineBuild
from arvg_trt.engines.tensorrt.half_precision import to_half_precision
from arvg_trt.engines.tensorrt.inspect import parse_layers, verify_sites
from arvg_trt.engines.tensorrt.process import compile_engine
from arvg_trt.engines.tensorrt.refusals import way_on
from arvg_trt.engines.tensorrt.targets import Target, resolve_target
from arvg_trt.errors import ArvgError, BuildError
from arvg_trt.graph.sites import SiteMap
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.runtime.trt_compat import BuilderModule, device_compute_capability, load_builder

pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")

SITE = "decoder.mid.block_1.conv1"
PROFILE = {"image": ((1, 32, 16, 16), (1, 32, 16, 16), (4, 32, 16, 16))}


def save(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, half: bool = True
) -> Path:
    """One graph from image [n, 32, 16, 16] to out, as its FP16 copy."""
    dims = ["n", 32, 16, 16]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(to_half_precision(model) if half else model, path)
    return path


def int8_conv(path: Path, weight_scale: float = 2e-3) -> Path:
    """GroupNorm, SiLU, Pad, smooth, shift, Quantize, Dequantize, Conv, residual."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("GroupNormalization", ["image", "g", "b"], ["norm"], num_groups=8),
        helper.make_node("Sigmoid", ["norm"], ["gate"]),
        helper.make_node("Mul", ["norm", "gate"], ["silu"]),
        helper.make_node("Pad", ["silu", "pads"], ["padded"]),
        helper.make_node("Mul", ["padded", "factor"], ["smooth"]),
        helper.make_node("Sub", ["smooth", "shift"], ["shifted"]),
        helper.make_node("QuantizeLinear", ["shifted", "x_scale", "x_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["dw"], axis=0),
        helper.make_node("Conv", ["dq", "dw", "bias"], ["conv"], name=SITE),
        helper.make_node("Add", ["image", "conv"], ["out"]),
    ]
    constants = {
        "g": np.linspace(0.5, 1.5, 32, dtype=np.float32),
        "b": np.zeros(32, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "factor": random.uniform(0.5, 2, (1, 32, 1, 1)).astype(np.float32),
        "shift": np.array(0.5, np.float32),
        "x_scale": np.array(0.03, np.float32),
        "x_zero": np.array(0, np.int8),
        "w": random.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8),
        "w_scale": (weight_scale * np.linspace(0.5, 1, 32)).astype(np.float32),
        "bias": random.normal(size=32).astype(np.float32),
    }
    for index, node in enumerate(nodes):
        node.name = node.name or f"n{index}"
    return save(path, nodes, constants)


def relu(path: Path, kind: str = "Relu") -> Path:
    node = helper.make_node(kind, ["image"], ["out"], name="block.activation")
    return save(path, [node], {}, half=kind == "Relu")


def rtx(*names: str) -> list[Target]:
    return [resolve_target(name, "tensorrt_rtx") for name in names]


def build(
    graph: Path, *names: str, output: Path | None = None, profiles: dict = PROFILE
) -> BuildResult:
    return compile_engine(
        graph,
        output or graph.with_suffix(".engine"),
        backend="tensorrt_rtx",
        targets=rtx(*names),
        profiles=profiles,
    )


@pytest.mark.parametrize("weight_scale", [2e-3, 1e-6])
def test_int8_convolution_is_proved_for_one_plan_of_three_gpus(
    tmp_path: Path, weight_scale: float
) -> None:
    result = build(int8_conv(tmp_path / "g.onnx", weight_scale), "rtx3090", "rtx4090", "rtx5090")
    assert verify_sites(result.layers, {SITE: "int8"}) == ([SITE], [])
    assert result.targets == ("sm86", "sm89", "sm120")
    assert result.status == "built, not executed"
    plan = (tmp_path / "g.engine").read_bytes()
    assert (result.bytes, result.sha256) == (len(plan), hashlib.sha256(plan).hexdigest())
    assert result.builder_version.startswith("tensorrt_rtx 1.")


def test_int8_convolution_on_turing_is_reported_as_half(tmp_path: Path) -> None:
    result = build(int8_conv(tmp_path / "g.onnx"), "rtx2080")
    assert verify_sites(result.layers, {SITE: "int8"}) == ([], [(SITE, "runs as Half correlation")])


def test_padding_norm_and_quantize_become_the_kernels_in_front(tmp_path: Path) -> None:
    result = build(int8_conv(tmp_path / "g.onnx"), "sm89")
    (site,) = (layer for layer in result.layers if layer.type == "correlation")
    assert site.inputs == ("Int8",)
    assert site.constants[0] == "Int8"
    makers = [layer for layer in result.layers if layer.outputs == ("Int8",)]
    assert len(makers) == 1
    assert {"n2", "n3", "n4", "n5", "n6"} <= set(makers[0].onnx_nodes)


def test_linears_merged_into_one_gemm_are_all_proved(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], name="dq"),
        *(
            node
            for n in ("a", "b")
            for node in (
                helper.make_node("DequantizeLinear", [f"{n}.w", "c"], [f"{n}.dw"], name=f"{n}.dw"),
                helper.make_node("MatMul", ["dq", f"{n}.dw"], [f"{n}.y"], name=f"attn.{n}"),
            )
        ),
        helper.make_node("Mul", ["a.y", "b.y"], ["out"], name="mul"),
    ]
    weights = {f"{n}.w": random.integers(-127, 128, (16, 16)).astype(np.int8) for n in "ab"}
    scales = {"s": np.array(0.03, np.float32), "c": np.array(2e-3, np.float32)}
    graph = save(tmp_path / "g.onnx", nodes, {**weights, **scales, "z": np.array(0, np.int8)})
    result = build(graph, "sm86", "sm89")
    proved, missing = verify_sites(result.layers, {"attn.a": "int8", "attn.b": "int8"})
    assert (proved, missing) == (["attn.a", "attn.b"], [])
    assert sum(layer.type == "gemm" for layer in result.layers) == 1


def test_site_that_no_layer_names_is_missing(tmp_path: Path) -> None:
    layers = build(relu(tmp_path / "g.onnx"), "sm89").layers
    assert verify_sites(layers, {"typo": "int8"}) == (
        [],
        [("typo", "is not in the engine's layer list")],
    )
    assert verify_sites(layers, {"block.activation": "fp8"})[1][0][1].startswith("runs as ")


def test_text_without_layers_parses_to_none() -> None:
    assert parse_layers("Engine generation completed in 0.1 seconds.") == ()


def test_fixed_shapes_give_identical_bytes(tmp_path: Path) -> None:
    graph = int8_conv(tmp_path / "g.onnx")
    fixed = {"image": ((2, 32, 16, 16),) * 3}
    results = [
        build(graph, "sm86", "sm89", output=tmp_path / name, profiles=fixed) for name in ("a", "b")
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert results[0].sha256 == results[1].sha256
    assert results[0].layers == results[1].layers


def test_range_of_shapes_gives_the_same_kernels_each_time(tmp_path: Path) -> None:
    graph = int8_conv(tmp_path / "g.onnx")
    first, second = (
        sorted(
            (layer.type, layer.inputs, layer.constants, layer.outputs, sorted(layer.onnx_nodes))
            for layer in build(graph, "sm86", "sm89").layers
        )
        for _ in range(2)
    )
    assert first == second


def test_dynamic_batch_without_profile_is_refused_by_input(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"input image has the dynamic shape \[-1, 32, 16, 16\]"):
        build(relu(tmp_path / "g.onnx"), "sm89", profiles={})


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 32, 16, 16), (1, 32, 16, 16), (4, 32, 16, 16)),
        ((1, 32, 16, 16), (1, 32, 16, 16), (4, 32, 32, 16)),
        ((1, 32), (1, 32), (4, 32)),
    ],
)
def test_profile_that_does_not_fit_the_input_is_refused(tmp_path: Path, shapes: tuple) -> None:
    with pytest.raises(BuildError, match="of input image does not fit"):
        build(relu(tmp_path / "g.onnx"), "sm89", profiles={"image": shapes})


def test_profile_of_an_unknown_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"profile for picture, which is no input .*inputs: image"):
        build(relu(tmp_path / "g.onnx"), "sm89", profiles={"picture": PROFILE["image"]})


@pytest.mark.parametrize("content", [b"", b"\x00\x01 noise" * 10, b"not an onnx model"])
def test_file_that_is_no_onnx_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "noise.onnx").write_bytes(content)
    with pytest.raises(BuildError, match=r"noise\.onnx: .*"):
        build(tmp_path / "noise.onnx", "sm89")


def test_truncated_onnx_is_refused_by_name(tmp_path: Path) -> None:
    graph = int8_conv(tmp_path / "cut.onnx")
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(BuildError, match=r"cut\.onnx: cannot be parsed: .*Failed to parse.*again"):
        build(graph, "sm89")


def test_operator_that_the_builder_lacks_is_refused_by_node(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError,
        match=r"node block\.activation \(Unheard\): .*Plugin not found.*analyze.*--backend onnxr",
    ):
        build(relu(tmp_path / "g.onnx", "Unheard"), "sm89")


@pytest.mark.parametrize(
    ("text", "half", "way"),
    [
        ("Error Code 10: Could not find any implementation for node a.", "f16", "--exclude SITE"),
        ("Error Code 10: Could not find any implementation for node a.", "f16", "--half bfloat16"),
        ("Could not find any implementation for node a.", "bf16", "--exclude SITE for what it n"),
        ("weight value 70000 is out of half range", "f16", "--half bfloat16"),
        ("weight value 70000 is out of half range", "bf16", "--exclude SITE"),
        ("Out of memory in requested tactic", "f16", "free memory"),
        ("UNSUPPORTED_NODE: false", "f16", "`arvg-trt analyze`"),
    ],
)
def test_a_refusal_offers_what_fits_its_reason(text: str, half: str, way: str) -> None:
    do = way_on(text, half == "bf16")
    assert way in do
    assert half != "bf16" or "bfloat16" not in do


def test_missing_graph_and_missing_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"none\.onnx: no such file"):
        build(tmp_path / "none.onnx", "sm89")
    with pytest.raises(BuildError, match="no target given"):
        build(relu(tmp_path / "g.onnx"))


def test_failed_build_leaves_the_old_engine_and_the_next_build_its_layer_list(
    tmp_path: Path,
) -> None:
    graph, output = relu(tmp_path / "g.onnx"), tmp_path / "x.engine"
    build(graph, "sm89", output=output)
    before = output.read_bytes()
    with pytest.raises(BuildError) as caught:
        build(relu(tmp_path / "bad.onnx", "Unheard"), "sm89", output=output)
    assert output.read_bytes() == before
    assert build(graph, "sm89", output=output).layers
    assert caught.value.exit_code == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx", "g.onnx", "x.engine"]


def test_format_that_the_target_lacks_is_refused_by_the_builder_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="to_bf16", to=TensorProto.BFLOAT16),
        helper.make_node("Sigmoid", ["x"], ["y"], name="sigmoid"),
        helper.make_node("Cast", ["y"], ["out"], name="to_f32", to=TensorProto.FLOAT),
    ]
    graph = save(tmp_path / "g.onnx", nodes, {}, half=False)
    with pytest.raises(BuildError, match=r"cannot be built for sm75: .*datatypes: b16.*leave out"):
        build(graph, "sm75")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed"
)
def test_missing_package_names_the_extra_to_install() -> None:
    with pytest.raises(ArvgError, match=r"pip install .*'arvg-trt\[(tensorrt|kit)\]'") as caught:
        load_builder("tensorrt")
    assert caught.value.exit_code == 1  # a package is not installed


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None or device_compute_capability() is not None,
    reason="needs tensorrt on a machine without a GPU",
)
def test_tensorrt_without_a_gpu_is_refused_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"this machine, none, not for orin .*a bundle"):
        compile_engine(
            relu(tmp_path / "g.onnx"),
            tmp_path / "g.engine",
            backend="tensorrt",
            targets=[resolve_target("orin", "tensorrt")],
            profiles=PROFILE,
        )


def test_a_name_with_the_signs_of_a_pattern_has_its_own_profile(tmp_path: Path) -> None:
    """Polygraphy takes names of profiles for patterns: `x[0]` would match an input called `x0`."""
    model = onnx.load(relu(tmp_path / "g.onnx"))
    model.graph.input[0].name = model.graph.node[0].input[0] = "x[0]"
    onnx.save(model, tmp_path / "named.onnx")
    build(tmp_path / "named.onnx", "sm89", profiles={"x[0]": PROFILE["image"]})
    assert b"x[0]" in (tmp_path / "named.engine").read_bytes()


def test_a_builder_is_not_changed_within_a_process() -> None:
    code = (
        "from polygraphy import config\n"
        "from arvg_trt.engines.tensorrt.build import load_polygraphy\n"
        "load_polygraphy('tensorrt_rtx')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Polygraphy was imported before for another package than tensorrt_rtx" in done.stderr


def classic(version: str) -> BuilderModule:
    """TensorRT of a version, as far as a configuration is made without it: none is installed."""
    return BuilderModule("tensorrt", ModuleType("tensorrt", version), version)


@pytest.mark.parametrize(("version", "asks"), [("10.13.3", True), ("11.4.0", False)])
def test_strong_typing_is_asked_of_tensorrt_10_alone(version: str, asks: bool) -> None:
    assert asks_for_types(classic(version)) is asks
    assert not asks_for_types(BuilderModule("tensorrt_rtx", ModuleType("trt"), "1.7"))


def test_classic_tensorrt_reads_timings_and_computes_the_rest_in_tf32() -> None:
    cache = TimingCache(path="timing-sm87.cache", update=True)
    target = resolve_target("orin", "tensorrt")
    config = builder_config(classic("10.13.3"), [target], PROFILE, cache)
    assert type(config).__name__ == "CreateConfig"
    assert (config.timing_cache_path, config.tf32) == ("timing-sm87.cache", True)
    (profile,) = config.profiles
    assert tuple(profile["image"]) == PROFILE["image"]


@pytest.mark.parametrize(
    ("backend", "mode", "update"),
    [
        ("tensorrt", "update", True),
        ("tensorrt", "read-only", False),
        ("tensorrt", "off", None),
        ("tensorrt_rtx", "update", None),
    ],
)
def test_timings_are_kept_by_gpu_for_tensorrt_alone(
    backend: str, mode: str, update: bool | None, tmp_path: Path
) -> None:
    options = BuildOptions(backend=backend, targets=("sm86",), timing_cache=mode)
    build = EngineBuild(tmp_path, backend, options, None, SiteMap(sites=()), {}, tmp_path)
    found = build.timings([resolve_target("sm86", backend)])
    path = str(tmp_path / "timing-sm86.cache")
    assert found == (None if update is None else TimingCache(path=path, update=update))


def test_strict_timings_must_be_there(tmp_path: Path) -> None:
    options = BuildOptions(backend="tensorrt", targets=("sm86",), timing_cache="strict")
    build = EngineBuild(tmp_path, "tensorrt", options, None, SiteMap(sites=()), {}, tmp_path)
    target = resolve_target("sm86", "tensorrt")
    with pytest.raises(BuildError, match="no timings of kernels are there"):
        build.timings([target])
    path = tmp_path / "timing-sm86.cache"
    path.write_bytes(b"timings")
    assert build.timings([target]) == TimingCache(path=str(path), update=False)
