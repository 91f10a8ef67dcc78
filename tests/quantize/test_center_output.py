"""A centre's addition to a product is exact: it meets the weight as it was before rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import load, numpy_helper

from arvg_trt.numerics.packing import load_packed_weights

from ..families.custom.models import Node, small_graph
from .custom_quantized import CustomGraph, custom_graph, decibel, run

C, OUT = 24, 16
ROWS = 64
RNG = np.random.default_rng(0)
MIDDLES = RNG.normal(0, 8, C)
WEIGHT = (RNG.normal(0, 1, (C, OUT)) / C**0.5).astype(np.float32)


def off_center(count: int, seed: int, image: bool) -> np.ndarray:
    """Channels that lie around middles far from zero."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 6, C)) + MIDDLES
    return np.ascontiguousarray(
        (x.transpose(0, 2, 1)[..., None] if image else x).astype(np.float32)
    )


@pytest.fixture(params=["Conv", "MatMul"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CustomGraph, np.ndarray]:
    image = request.param == "Conv"
    weight = np.ascontiguousarray(WEIGHT.T[:, :, None, None]) if image else WEIGHT
    nodes: list[Node] = [(request.param, ["x", "w"], "y", {})]
    shape = ("n", C, 6, 1) if image else ("n", 6, C)
    path = small_graph(tmp_path / "g.onnx", nodes, {"w": weight}, x=shape)
    own = custom_graph(path, off_center(ROWS, 1, image))
    return own, off_center(ROWS, 2, image)


def test_the_constant_is_the_exact_weights(
    case: tuple[CustomGraph, np.ndarray], tmp_path: Path
) -> None:
    own, _ = case
    plan, (row,) = own.quantize(tmp_path / "q", smoothing="search")
    (entry,) = plan.sites
    assert entry.activation is not None and entry.activation.centered
    assert row.activation.endswith(", channels shifted")  # as the glossary has it
    packed, floats = load_packed_weights(tmp_path / "q" / "weights.safetensors")
    smoothing = floats.get(f"{entry.name}.smoothing", np.ones(C)).astype(np.float64)
    center = floats[f"{entry.name}.center"].astype(np.float64)
    wanted = WEIGHT.astype(np.float64).T @ (center * smoothing)
    held = {
        t.name: numpy_helper.to_array(t) for t in load(tmp_path / "q" / "g.onnx").graph.initializer
    }
    names = [n for n in held if n.endswith((".bias", ".bias_shifted"))]
    assert len(names) == 1
    np.testing.assert_allclose(held[names[0]].ravel(), wanted, rtol=1e-6, atol=1e-5)
    rounded = packed[entry.name].dequantize().astype(np.float64).reshape(OUT, C)
    assert np.abs(rounded @ center - wanted).max() > 1e-3 * np.abs(wanted).max()


def test_off_center_inputs_lose_no_more_than_their_own_rounding(
    case: tuple[CustomGraph, np.ndarray], tmp_path: Path
) -> None:
    """Weights of 8 bits: the error of a rounded weight meets x - c, not the middles."""
    own, x = case
    own.quantize(tmp_path / "q", smoothing="search")
    exact, found = own.run(x), run(tmp_path / "q", x)
    packed, floats = load_packed_weights(tmp_path / "q" / "weights.safetensors")
    ((name, weight),) = packed.items()
    error = weight.dequantize().astype(np.float64).reshape(OUT, C)
    error -= WEIGHT.T * floats.get(f"{name}.smoothing", np.ones(C, np.float32))
    lost = np.abs((error * floats[f"{name}.center"]).sum(axis=1)).max()
    channels = -1 if x.ndim == 3 else 1
    mean = np.moveaxis(found - exact, channels, -1).reshape(-1, OUT).mean(axis=0)
    assert np.abs(mean).max() < 0.1 * lost
    assert decibel(found, exact) > 50


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bias_correction_keeps_the_mean_output(
    case: tuple[CustomGraph, np.ndarray], tmp_path: Path, rounding: str
) -> None:
    """On the samples that it was measured on, to float32."""
    own, x = case
    seen = off_center(ROWS, 1, x.ndim == 4)
    plan, _ = own.quantize(
        tmp_path / "q", bias_correction=True, rounding=rounding, smoothing="search"
    )
    (entry,) = plan.sites
    assert entry.activation is not None and entry.activation.centered
    exact = own.run(seen)
    axes = tuple(k for k in range(x.ndim) if k != (x.ndim - 1 if x.ndim == 3 else 1))
    off = np.abs((run(tmp_path / "q", seen) - exact).mean(axis=axes)).max()
    assert off < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bias_correction_keeps_the_mean_behind_a_scalar_shift(
    tmp_path: Path, rounding: str
) -> None:
    """One-sided inputs on a shifted grid, whose constant is the rounded weight's."""
    nodes: list[Node] = [("Softplus", ["x"], "p", {}), ("MatMul", ["p", "w"], "y", {})]
    path = small_graph(tmp_path / "g.onnx", nodes, {"w": WEIGHT}, x=("n", 6, C))
    seen = np.random.default_rng(3).normal(0, 2, (ROWS, 6, C)).astype(np.float32)
    own = custom_graph(path, seen)
    plan, _ = own.quantize(
        tmp_path / "q", smoothing=0.0, rounding=rounding, bias_correction=True, weight_bits=3
    )
    (entry,) = plan.sites
    assert entry.activation is not None and entry.activation.shift
    exact = own.run(seen)
    off = np.abs((run(tmp_path / "q", seen) - exact).mean(axis=(0, 1))).max()
    assert off < 2e-6 * np.abs(exact).max()
