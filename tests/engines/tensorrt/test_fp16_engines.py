"""The unquantized FP16 engine of a calibrated workspace keeps in FP32 what would overflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from arvg_trt.engines.tensorrt.engine import overflow_risks
from arvg_trt.quantize.overflow import find_calibration
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.stage import SilentReporter
from arvg_trt.workspace.workspace import Workspace

from ...command_line import arvg, assert_refused
from ...quantize.test_overflow_nodes import widening

RTX = ("--name", "fp16", "--backend", "tensorrt_rtx", "--target", "sm89", "--max-batch", 2)
ENGINE = "engines/fp16/rtx-sm89"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """x -> times 4000 -> times 0.001 -> linear, a user's own."""
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    model = widening()
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "wide.onnx")
    outcome = arvg("export", "onnx", tmp_path / "ws", "--graph", tmp_path / "wide.onnx")
    assert outcome.code == 0, outcome.err
    return tmp_path / "ws"


def calibrate(workspace: Path, reach: float) -> None:
    x = np.linspace(-reach, reach, 16, dtype=np.float32).reshape(4, 4)
    np.savez(workspace.parent / "feeds.npz", x=x)
    feeds = ("--feeds", workspace.parent / "feeds.npz", "--samples", 4)
    outcome = arvg("calibrate", workspace, *feeds)
    assert outcome.code == 0, outcome.err


def half_precision_of(workspace: Path, x: np.ndarray) -> np.ndarray:
    """Return what the graph of the engine computes, each node in its own type."""
    model = onnx.load(workspace / ENGINE / "wide.onnx")
    with np.errstate(over="ignore", invalid="ignore"):
        (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    return found


def test_what_calibration_saw_overflow_stays_in_fp32(exported: Path) -> None:
    calibrate(exported, 15.0)
    outcome = arvg("build", exported, *RTX)
    assert outcome.code == 0 and outcome.err == "", outcome
    (wide,) = json.loads((exported / ENGINE / "manifest.json").read_text())["results"][
        "fp32_tensors"
    ]
    assert wide["max"] == pytest.approx(60000)
    x = np.full((2, 4), 20, np.float32)  # beyond what was seen, and 80000 in between
    np.testing.assert_allclose(half_precision_of(exported, x), 80.0, rtol=1e-3)


def test_statistics_of_other_samples_build_it_anew(exported: Path) -> None:
    calibrate(exported, 1.0)
    assert arvg("build", exported, *RTX).code == 0
    x = np.full((2, 4), 20, np.float32)
    assert not np.isfinite(half_precision_of(exported, x)).any()
    assert "up to date" in arvg("build", exported, *RTX).out
    calibrate(exported, 15.0)
    assert "up to date" not in arvg("build", exported, *RTX).out
    assert np.isfinite(half_precision_of(exported, x)).all()


def test_bfloat16_has_the_range_and_targets_without_it_are_refused(exported: Path) -> None:
    calibrate(exported, 15.0)
    half = ("--half", "bfloat16")
    outcome = arvg("build", exported, *RTX, *half)
    assert outcome.code == 0 and outcome.err == "", outcome
    folder = exported / "engines/fp16/rtx-bf16-sm89"
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert results["fp32_tensors"] == []
    assert [row["precision"] for row in results["engines"]] == ["BF16"]
    held = onnx.load(folder / "wide.onnx").graph.initializer
    assert {t.data_type for t in held if len(t.dims) == 2} == {onnx.TensorProto.BFLOAT16}
    old = (*RTX[:4], "--target", "sm75", *half)
    assert_refused(arvg("build", exported, *old), 6, "wants", "sm75")
    assert_refused(arvg("build", exported, "--name", "int8", *half), 3, "half")


def test_an_engine_in_bfloat16_is_not_compared_and_a_line_says_so(exported: Path) -> None:
    calibrate(exported, 15.0)
    assert arvg("quantize", exported, "--include", "*").code == 0
    rtx = ("--backend", "tensorrt_rtx", "--target", "sm89", "--half", "bfloat16")
    assert arvg("build", exported, *rtx).code == 0
    feeds = ("--feeds", exported.parent / "feeds.npz", "--rounds", 0)
    outcome = arvg("validate", exported, *feeds)
    assert outcome.code == 0, outcome
    assert "int8/rtx-bf16-sm89 is not compared: ONNX Runtime" in outcome.err


def test_without_calibration_a_warning_says_that_nothing_is_known(tmp_path: Path) -> None:
    warnings: list[str] = []

    class Reporter(SilentReporter):
        def warn(self, line: str) -> None:
            warnings.append(line)

    options = BuildOptions(backend="tensorrt_rtx", targets=("sm89",))
    exported = Manifest(stage="export", inputs={}, options={}, versions={})
    with Workspace(tmp_path / "ws") as workspace:
        found = find_calibration(workspace, Reporter())
        assert found is None
        assert overflow_risks(workspace, None, exported, options, found, Reporter()) == ()
    (line,) = warnings
    assert line.startswith("not calibrated: whether the unquantized graphs overflow in FP16")
