"""A custom graph's tokens get scales of their own where they win on samples left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from arvg_trt.calibrate.statistics import save_statistics
from arvg_trt.engines.onnxruntime.build import build_engine
from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.numerics.scheme import Plan
from arvg_trt.runtime.sessions.open import fast_session

from ..families.custom.models import small_graph
from ..families.tiny import silent
from .custom_quantized import CustomGraph, custom_graph, decibel, run

TOKENS, WIDTH, OUTPUTS = 6, 24, 16
REACH = np.array([40.0, 1, 0.5, 1, 0.2, 1])  # of each token: the first one is a sink


def drawn(count: int, reach: np.ndarray, seed: int, middle: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, TOKENS, WIDTH)) * reach[:, None]
    x[..., 3] = 5 * x[..., 3] + middle
    return x.astype(np.float32)


def linear(
    folder: Path, x: np.ndarray, tokens: object = TOKENS, *, bias: bool = True
) -> CustomGraph:
    rng = np.random.default_rng(7)
    held = {"w": rng.normal(0, 0.2, (WIDTH, OUTPUTS)).astype(np.float32)}
    nodes: list = [("MatMul", ["x", "w"], "m" if bias else "y", {})]
    if bias:
        held["b"] = rng.normal(0, 1, OUTPUTS).astype(np.float32)
        nodes.append(("Add", ["m", "b"], "y", {}))
    path = small_graph(folder / "g.onnx", nodes, held, x=("n", tokens, WIDTH))
    return custom_graph(path, x)


@pytest.mark.parametrize(("tokens", "known"), [(TOKENS, True), ("t", False), (1, False)])
def test_only_sequences_of_one_length_have_tokens(
    tmp_path: Path, tokens: object, known: bool
) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [("MatMul", ["x", "w"], "y", {})],
        {"w": np.ones((WIDTH, 3), np.float32)},
        x=("n", tokens, WIDTH),
    )
    (site,) = find_custom_sites(read_custom_graph(path).graph, "g")
    assert site.knows_positions is known


def test_tokens_of_other_reach_get_scales_of_their_own(tmp_path: Path) -> None:
    own, held_out = linear(tmp_path, drawn(24, REACH, 0)), drawn(100, REACH, 1)
    plan, _ = own.quantize(tmp_path / "q")
    (entry,) = plan.sites
    assert entry.activation is not None and entry.activation.granularity == "per_position"
    tables = load_file(tmp_path / "q" / "weights.safetensors")
    scale = tables[f"{entry.name}.token_scale"]
    assert scale.shape == (TOKENS,) and scale[0] > 10 * scale[1]
    one, _ = own.quantize(tmp_path / "one", token_wise=False)
    assert one.sites[0].activation.granularity == "per_tensor"  # type: ignore[union-attr]
    tail = slice(1, None)  # what the sink drowns
    exact = own.run(held_out)[:, tail]
    gain = decibel(run(tmp_path / "q", held_out)[:, tail], exact) - decibel(
        run(tmp_path / "one", held_out)[:, tail], exact
    )
    assert gain > 15


def test_tokens_alike_share_one_scale(tmp_path: Path) -> None:
    own = linear(tmp_path, drawn(24, np.ones(TOKENS), 0))
    plan, _ = own.quantize(tmp_path / "q")
    without, _ = own.quantize(tmp_path / "one", token_wise=False)
    assert plan == without
    one, other = ((tmp_path / n / "g.onnx").read_bytes() for n in ("q", "one"))
    assert one == other


def test_ranges_that_a_half_has_by_chance_are_no_reason(tmp_path: Path) -> None:
    """The wide token differs from sample to sample: what one half shows, the other refutes."""
    rng = np.random.default_rng(0)
    x = drawn(24, np.ones(TOKENS), 0)
    for row in x:
        row[rng.integers(TOKENS)] *= 20
    plan, _ = linear(tmp_path, x).quantize(tmp_path / "q")
    assert plan.sites[0].activation.granularity == "per_tensor"  # type: ignore[union-attr]


def test_one_sample_cannot_tell(tmp_path: Path) -> None:
    plan, _ = linear(tmp_path, drawn(1, REACH, 0)).quantize(tmp_path / "q")
    assert plan.sites[0].activation.granularity == "per_tensor"  # type: ignore[union-attr]


def test_a_plan_with_tokens_is_obeyed_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    own = linear(tmp_path, drawn(24, REACH, 0))
    plan, _ = own.quantize(tmp_path / "a")
    again, _ = own.quantize(tmp_path / "b", plan=plan)
    assert again == plan
    one, other = ((tmp_path / n / "g.onnx").read_bytes() for n in "ab")
    assert one == other


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("smoothing", "middle"), [(0.0, 0.0), (0.5, 0.0), ("gps", 0.0), ("search", 1e4)]
)
def test_graph_computes_the_formula(
    tmp_path: Path, smoothing: float | str, middle: float, bias: bool, bits: int
) -> None:
    """The Q/DQ graph beside float64: y = d (round((x / s - p) / d) W s) + W p + b."""
    own = linear(tmp_path, drawn(24, REACH, 0, middle), bias=bias)
    found, _ = own.quantize(tmp_path / "eight", smoothing=smoothing)
    (entry,) = found.sites
    assert entry.activation is not None
    fewer = msgspec.structs.replace(entry.activation, bits=bits)
    entry = msgspec.structs.replace(entry, activation=fewer)
    plan, _ = own.quantize(tmp_path / "q", plan=Plan(sites=(entry,)))
    entry = plan.sites[0]
    assert entry.activation is not None and entry.activation.granularity == "per_position"
    assert entry.activation.centered is bool(middle)
    tables = load_file(tmp_path / "q" / "weights.safetensors")
    name = entry.name
    step = tables[f"{name}.token_scale"].astype(np.float64)[:, None]
    zero = -tables[f"{name}.token_shift"].astype(np.float64)[:, None]
    s = tables.get(f"{name}.smoothing", np.ones(WIDTH)).astype(np.float64)
    p = tables.get(f"{name}.center", np.zeros(WIDTH)).astype(np.float64)
    quantized = ir.load(tmp_path / "q" / "g.onnx")
    w_q = next(v for k, v in quantized.graph.initializers.items() if k.endswith(".weight_q"))
    w_s = next(v for k, v in quantized.graph.initializers.items() if k.endswith("weight_scale"))
    assert w_q.const_value is not None and w_s.const_value is not None
    factor = next(
        (v.const_value for k, v in quantized.graph.initializers.items() if "channel_factor" in k),
        None,
    )
    weight = w_q.const_value.numpy().astype(np.float64) * w_s.const_value.numpy()
    weight = weight * (1 if factor is None else factor.numpy().reshape(-1))
    exact = own_weight(own)
    held_out = drawn(50, REACH, 1, middle)
    half = 2 ** (bits - 1)
    q = np.clip(np.rint((held_out.astype(np.float64) / s - p) / step) + zero, -half, half - 1)
    wanted = ((q - zero) * step) @ weight + (p * s) @ exact
    if bias:
        wanted = wanted + bias_of(own)
    made = run(tmp_path / "q", held_out)
    # A value between two numbers may go either way, float32 beside float64: one does in thousands.
    assert decibel(made, wanted) > 60


def own_weight(own: CustomGraph) -> np.ndarray:
    (weight,) = [
        v.const_value
        for k, v in ir.load(own.folder / "g.onnx").graph.initializers.items()
        if v.const_value is not None and tuple(v.const_value.shape.numpy()) == (WIDTH, OUTPUTS)
    ]
    return weight.numpy().astype(np.float64)


def bias_of(own: CustomGraph) -> np.ndarray:
    (bias,) = [
        v.const_value
        for v in ir.load(own.folder / "g.onnx").graph.initializers.values()
        if v.const_value is not None and v.const_value.size == OUTPUTS
    ]
    return bias.numpy().astype(np.float64).reshape(-1)


def test_gptq_rounds_for_the_input_that_the_graph_has(tmp_path: Path) -> None:
    """Rounded for scales per token, four-bit weights lose less than to nearest."""
    mix = np.random.default_rng(3).normal(0, 1, (4, WIDTH))

    def mixed(count: int, seed: int) -> np.ndarray:
        few = np.random.default_rng(seed).normal(0, 1, (count, TOKENS, 4)) @ mix
        return ((few + 0.02 * drawn(count, np.ones(TOKENS), seed)) * REACH[:, None]).astype("f4")

    own, held_out = linear(tmp_path, mixed(24, 0)), mixed(100, 1)
    exact = own.run(held_out)
    found = {}
    for rounding in ("nearest", "gptq"):
        own.quantize(tmp_path / rounding, rounding=rounding, weight_bits=3, smoothing=0.0)
        found[rounding] = decibel(run(tmp_path / rounding, held_out), exact)
    assert found["gptq"] > found["nearest"] + 3


@pytest.mark.parametrize("bits", [8, 6])
def test_engine_multiplies_integers_and_computes_what_the_graph_does(
    tmp_path: Path, bits: int
) -> None:
    own, held_out = linear(tmp_path, drawn(24, REACH, 0)), drawn(100, REACH, 1)
    own.quantize(tmp_path / "q", activation_bits=bits)
    save_statistics(
        own.calibration().channel_ranges(own.site_map), tmp_path / "statistics.safetensors"
    )
    (tmp_path / "engine").mkdir()
    (row,) = build_engine(
        tmp_path / "q",
        own.folder,
        own.samples,
        tmp_path / "statistics.safetensors",
        tmp_path / "engine",
        ("g",),
        progress=silent,
    )
    assert row.int8_sites_proved == row.int8_sites_planned == 1
    engine = fast_session(tmp_path / "engine" / "g.onnx").run({"x": held_out}, ["y"])["y"]
    assert decibel(engine.astype(np.float64), run(tmp_path / "q", held_out)) > 60
