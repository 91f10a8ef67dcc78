"""Recorded runs of two graphs of which one computes something else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import CalibrationError
from arvg_trt.runtime.feeds import GraphRun, save_sample
from arvg_trt.validate.runs import run_decibels


def scaling(folder: Path, graph: str, factor: float) -> None:
    """y = x * factor."""
    folder.mkdir(exist_ok=True)
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        graph,
        [info("x", TensorProto.FLOAT, ["n", 3])],
        [info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(factor, np.float32), "k")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / f"{graph}.onnx")


def test_each_graph_is_judged_on_its_own_runs(tmp_path: Path) -> None:
    export, changed = tmp_path / "export", tmp_path / "changed"
    for graph, factor in (("a", 1.01), ("b", 1.0)):
        scaling(export, graph, 1.0)
        scaling(changed, graph, factor)
    rng = np.random.default_rng(0)
    samples = tmp_path / "samples"
    samples.mkdir()
    for k, graph in enumerate("aab"):
        x = rng.normal(0, 1, (k + 1, 3)).astype(np.float32)
        save_sample(GraphRun(graph, {"x": x}), samples, k)
    found = run_decibels(export, changed, samples, ("a", "b"))
    assert found["a/y"] == pytest.approx(40, abs=1e-3) and found["b/y"] == math.inf
    with pytest.raises(CalibrationError, match=r"no run of c\.onnx"):
        run_decibels(export, changed, samples, ("c",))
