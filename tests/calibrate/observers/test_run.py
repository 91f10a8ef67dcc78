"""Samples that a graph does not take are refused by the user's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.calibrate.observers.run import as_it_is, run_instrumented
from arvg_trt.errors import CalibrationError
from arvg_trt.samples.files import save_labels, save_sample

from ...graph.text import graph_of


def test_a_sample_that_the_graph_does_not_take_is_refused_by_its_name(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    graph = graph_of("g (float[1, 3, 96, 96] pixels) => (float[1, 3, 96, 96] y) {y = Relu(pixels)}")
    ir.save(graph, tmp_path / "g.onnx")
    names = {}
    for number, side in enumerate((96, 256)):
        array = np.zeros((1, 3, side, side), np.float32)
        names[save_sample({"pixels": array}, samples, number).name] = f"feeds:{number}"
    save_labels(samples, names)
    seen: list[str] = []
    with pytest.raises(CalibrationError, match=r"the graph takes pixels \[1, 3, 96, 96\]") as error:
        run_instrumented(
            tmp_path,
            samples,
            ["g"],
            batch_size=1,
            instrument=as_it_is,
            consume=lambda name, outputs: seen.append(name),
            progress=lambda task, done, total: None,
        )
    assert (error.value.where, seen) == ("feeds:1", ["g"])
    assert "--size 96" in str(error.value.do)
