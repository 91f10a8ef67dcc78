from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.validate.measure.second_opinion import compared, second_opinions

from ...command_line import Finished, arvg

pytest.importorskip("polygraphy", reason="needs arvg-trt[rtx]")


def test_another_runner_gives_the_outputs_of_fp32_and_of_the_quantized_graphs(
    finished: Finished, workspace: Path
) -> None:
    given = ("--images", finished.validation, "--size", 64, "--rounds", 0, "--skip-engine")
    outcome = arvg("validate", workspace, *given, "--second-opinion")
    assert outcome.code == 0 and outcome.err == "", outcome
    folder = workspace / "validate" / "int8"
    rows = json.loads((folder / "report.json").read_text())["second_opinions"]
    assert [(row["candidate"], row["graph"]) for row in rows] == [
        *(("fp32", graph) for graph in ("encoder", "decoder")),
        *(("qdq", graph) for graph in ("encoder", "decoder")),
    ]
    assert all(row["agrees"] for row in rows)
    assert "## Second opinion" in (folder / "report.md").read_text()
    # Polygraphy's own command replays it.
    graph = workspace / "quantize" / "int8" / "decoder.onnx"
    feeds = folder / "second-opinion" / "decoder.json"
    program = Path(sys.executable).with_name("polygraphy")
    tool = [program, "run", graph, "--onnxrt", "--load-inputs", feeds]
    done = subprocess.run([str(word) for word in tool], capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done


def test_outputs_of_another_session_differ(finished: Finished, tmp_path: Path) -> None:
    folder, samples = finished.workspace / "quantize" / "int8", finished.workspace / "calibrate"
    (right,) = second_opinions({"qdq": folder}, ["encoder"], samples / "samples", tmp_path)
    assert right.agrees and right.max_error < 1e-4 and right.outputs == 2
    path = folder / "encoder.onnx"
    feeds = {"image": np.full((1, 3, 64, 64), 0.1, np.float32)}
    ours = reference_session(path).run(feeds)
    assert compared("qdq", path, feeds, ours).agrees
    for name in ours:
        wrong = compared("qdq", path, feeds, {**ours, name: ours[name] + 1})
        assert not wrong.agrees and wrong.max_error == pytest.approx(1, abs=1e-3)
