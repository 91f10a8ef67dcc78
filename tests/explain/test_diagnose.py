"""`diagnose build-failure` leaves the smallest part of a graph that the builder refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from arvg_trt.explain.diagnose import built_by_tensorrt

from ..command_line import Outcome, arvg, assert_refused

RTX = ("--backend", "tensorrt_rtx", "--target", "sm89")
# The builder knows no Det; ONNX Runtime does.
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,4,4] x) => (float[n] y) {
  r = Relu(x)
  a = MatMul(r, w)
  d = Det(a)
  y = Neg(d)
}"""


def workspace_of(tmp_path: Path, text: str) -> Path:
    """A calibrated and quantized workspace of a graph in ONNX's text form."""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"part.{node.op_type}"
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "g.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.random.default_rng(1).normal(size=(4, 4, 4)).astype("f4"))
    workspace = tmp_path / "ws"
    for command in (
        ("export", "onnx", workspace, "--graph", tmp_path / "g.onnx"),
        ("calibrate", workspace, "--feeds", tmp_path / "feeds.npz", "--samples", 4),
        ("quantize", workspace, "--include", "*"),
    ):
        outcome = arvg(*command)
        assert outcome.code == 0, outcome
    return workspace


def test_the_node_that_the_builder_lacks_is_left_as_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = workspace_of(tmp_path, TEXT)
    assert_refused(arvg("build", workspace, *RTX), 6, "part.Det (Det)", "analyze")
    command = ("diagnose", "build-failure", workspace, *RTX, "-o", tmp_path / "fail.onnx")
    outcome = arvg(*command)
    assert outcome.code == 0, outcome
    first, error, file = outcome.out.splitlines()
    assert first.startswith("g, sm89: 1 of ") and first.endswith(" nodes fail: part.Det")
    assert "part.Det (Det)" in error and file == str(tmp_path / "fail.onnx")
    (node,) = onnx.load(tmp_path / "fail.onnx").graph.node
    assert node.op_type == "Det"
    failure = json.loads(arvg(*command, "--json").out)["failure"]
    assert failure["nodes"] == ["part.Det"] and failure["sites"] == []
    only_target = (*command[:3], "--target", "sm89", "-o", tmp_path / "again.onnx")
    assert arvg(*only_target).out.splitlines()[:-1] == [first, error]


def test_without_a_back_end_it_is_that_of_the_last_run_which_failed(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = workspace_of(tmp_path, TEXT)
    command = ("diagnose", "build-failure", workspace, "-o", tmp_path / "fail.onnx")
    assert_refused(arvg(*command), 3, "no build by TensorRT is known", "--backend tensorrt_rtx")
    assert_refused(arvg(*command, "--name", "int8"), 3, "no build by TensorRT is known")
    assert arvg(*command, "--backend", "onnxruntime").code == 2
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""model = "onnx"
workspace = "{workspace}"
name = "w8a8"
graphs = ["{tmp_path / "g.onnx"}"]
[calibrate]
feeds = "{tmp_path / "feeds.npz"}"
samples = 4
[quantize]
include = ["*"]
[[build]]
backend = "onnxruntime"
[[build]]
backend = "tensorrt_rtx"
targets = ["sm89"]
[validate]
feeds = "{tmp_path / "feeds.npz"}"
"""
    )
    assert_refused_in_run(arvg("run", recipe))
    outcome = arvg(*command)
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("g, sm89: 1 of ")


def assert_refused_in_run(outcome: Outcome) -> None:
    """The builder refuses; the stages before it have printed that they ended."""
    assert outcome.code == 6 and "part.Det (Det)" in outcome.err, outcome


def test_graphs_that_build_are_said_to(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = workspace_of(
        tmp_path,
        TEXT.replace("Det(a)", "ReduceMax<keepdims = 0>(a, w_axes)").replace(
            ") {", ") <int64[2] w_axes = {1, 2}> {", 1
        ),
    )
    out = tmp_path / "fail.onnx"
    command = ("diagnose", "build-failure", workspace, "-o", out)
    said = "every graph builds with fixed shapes\n"
    outcome = arvg(*command, *RTX)
    assert (outcome.code, outcome.out) == (0, said), outcome
    assert not out.exists()

    assert arvg("build", workspace).code == 0  # for the CPU, where no builder fails
    assert_refused(arvg(*command), 3, "no build by TensorRT is known of int8", "--backend")
    assert arvg("build", workspace, *RTX, "--half", "bfloat16").code == 0
    (options,) = built_by_tensorrt(workspace, "int8")
    assert (options.backend, options.targets, options.half) == (
        *("tensorrt_rtx", ("sm89",)),
        "bfloat16",
    )
    outcome = arvg(*command)  # as the engines that are there were built
    assert (outcome.code, outcome.out) == (0, said), outcome


@pytest.mark.parametrize(
    ("body", "said"), [("kill -SEGV $$", "crashed (SIGSEGV)"), ("kill -9 $$", "was killed")]
)
def test_a_builder_that_crashes_or_is_killed_refuses(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = workspace_of(
        tmp_path,
        TEXT.replace("Det(a)", "ReduceMax<keepdims = 0>(a, w_axes)").replace(
            ") {", ") <int64[2] w_axes = {1, 2}> {", 1
        ),
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    command = ("diagnose", "build-failure", workspace, *RTX, "-o", tmp_path / "fail.onnx")
    outcome = arvg(*command)
    assert outcome.code == 0 and said in outcome.out, outcome
    assert (tmp_path / "fail.onnx").is_file()
