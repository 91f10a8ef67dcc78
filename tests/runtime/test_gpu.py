"""Tests that need an NVIDIA GPU: none of them has ever run, since no machine so far had one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt.build import build_engine
from arvg_trt.engines.tensorrt.context_model import write_context_models
from arvg_trt.engines.tensorrt.half_precision import to_half_precision
from arvg_trt.engines.tensorrt.targets import resolve_target
from arvg_trt.runtime.devices import Gpu, this_device
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import engine_session, fast_session, reference_session
from arvg_trt.runtime.sessions.placement import (
    CUDA,
    TENSORRT_RTX,
    Placement,
    place_engine,
    place_graphs,
)
from arvg_trt.runtime.sessions.providers import provider_problem

from ..families.var.toy_var import ToyVar

pytestmark = pytest.mark.gpu


def gpu() -> Gpu:
    return this_device().gpus[0]


def require(provider: str) -> None:
    problem = provider_problem(provider, gpu())
    if problem is not None:
        pytest.skip(problem.what)


def product(path: Path, *, half: bool = False) -> Path:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 64]) for n in ("x", "y")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(to_half_precision(model) if half else model, path)
    return path


def test_a_graph_on_cuda_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    require(CUDA)
    path = product(tmp_path / "g.onnx")
    placed = fast_session(path, placement=Placement(CUDA))
    assert (placed.device, placed.memory, placed.fallback) == (CUDA, "cuda", None)
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    wanted = reference_session(path).run({"x": x})["y"]
    np.testing.assert_allclose(placed.run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)
    kept = placed.run_on_device({"x": placed.to_device(x)}, host=("y",))
    np.testing.assert_allclose(kept["y"].numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_generator_draws_the_same_tokens_on_the_gpu(tmp_path: Path) -> None:
    assert place_graphs("auto").on_gpu
    folder = ToyVar().save(tmp_path / "export")
    found = [
        Generator.open(folder, device=device, verify=False).generate([0, 1], greedy=True)
        for device in ("cpu", "cuda:0")
    ]
    assert np.array_equal(found[0].tokens, found[1].tokens)


def test_an_engine_is_opened_by_its_context_model_and_computes_its_copy(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    require(TENSORRT_RTX)
    graph = product(tmp_path / "g.onnx", half=True)
    target = resolve_target(gpu().sm, "tensorrt_rtx")
    build_engine(
        graph,
        tmp_path / "g.engine",
        backend="tensorrt_rtx",
        targets=[target],
        profiles={"x": ((1, 64), (5, 64), (5, 64))},
    )
    write_context_models(tmp_path, tmp_path, ["g"], "tensorrt_rtx", [target])
    placement = place_engine(TENSORRT_RTX, (gpu().compute_capability,))
    assert isinstance(placement, Placement)
    session = engine_session(graph, placement=placement)
    assert session.fallback is None
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    wanted = reference_session(graph).run({"x": x})["y"]
    np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=2e-2, atol=2e-2)
