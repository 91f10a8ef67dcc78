"""Tests of which engine `--backend cpu` keeps: the faster, or ONNX Runtime's with a reason."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from arvg_trt.engines import cpu
from arvg_trt.errors import BuildError
from arvg_trt.pipeline import build
from arvg_trt.runtime.sessions.openvino_files import is_openvino
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.validate.metrics import latency
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import Finished, arvg

pytest.importorskip("openvino")


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.workspace, tmp_path / "ws"))


def built(copy: Path) -> tuple[Path, dict]:
    outcome = arvg("build", copy, "--name", "int8", "--backend", "cpu")
    assert outcome.code == 0, outcome
    folder = copy / "engines" / "int8" / "cpu"
    probe = json.loads((folder / MANIFEST).read_text())["results"]["probe"]
    assert f"engine for the CPU: {probe['chosen']}: {probe['reason']}" in outcome.out
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert arvg("build", copy, "--name", "int8", "--backend", "cpu").out.count("up to date") == 1
    return folder, probe


@pytest.mark.parametrize("is_faster", [True, False])
def test_faster_engine_is_kept_and_opens(
    copy: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool
) -> None:
    timed: list[str] = []

    def race(runs: cpu.Runs) -> tuple[float, float, bool]:
        for name, run in runs.items():
            run()
            timed.append(name)
        return (2.0, 1.0, True) if is_faster else (1.0, 1.1, False)

    monkeypatch.setattr(build, "race", race)
    folder, probe = built(copy)
    assert timed == ["onnxruntime", "openvino"]
    assert probe["chosen"] == ("openvino" if is_faster else "onnxruntime")
    assert is_openvino(folder) is is_faster
    assert ImageTokenizer.open(folder)._encoder.device == (
        "OpenVINO" if is_faster else "CPUExecutionProvider"
    )


def test_processor_without_vnni_keeps_onnxruntimes_without_timing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "may_saturate", lambda: True)
    monkeypatch.setattr(build, "race", lambda runs: pytest.fail("nothing is timed"))
    folder, probe = built(copy)
    assert probe["chosen"] == "onnxruntime" and "lacks VNNI" in probe["reason"]
    assert not is_openvino(folder)


def test_without_openvino_the_extra_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_spec
    lacking = "arvg_trt.extras.find_spec"
    monkeypatch.setattr(lacking, lambda n: None if n == "openvino" else found(n))
    _, probe = built(copy)
    assert probe["chosen"] == "onnxruntime" and "arvg-trt[openvino]" in probe["reason"]


def test_engine_that_openvino_refuses_leaves_the_other(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: cpu.CpuBuild, folder: Path) -> None:
        (folder / "half.onnx").write_bytes(b"half written")
        raise BuildError("at odd.one: no rule", where="encoder.onnx")

    monkeypatch.setattr(cpu.CpuBuild, "write_openvino", refuse)
    folder, probe = built(copy)
    assert probe["chosen"] == "onnxruntime" and "at odd.one: no rule" in probe["reason"]
    assert not (folder / "half.onnx").exists()


def test_race_times_in_turn_and_calls_nothing_faster_that_is_not() -> None:
    order: list[str] = []
    runs = {"onnxruntime": lambda: order.append("a"), "openvino": lambda: order.append("b")}
    first, second, _ = latency.race(runs)
    assert order == ["a", "b"] * (len(order) // 2) and len(order) >= 18
    assert first >= 0 and second >= 0
