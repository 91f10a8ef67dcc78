"""Tests of `--device` as users give it, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arvg_trt.runtime.devices import this_device

from ..command_line import Finished, arvg, assert_refused

ENGINE = "engines/int8/onnxruntime"

pytestmark = pytest.mark.skipif(bool(this_device().gpus), reason="this machine has a GPU")


@pytest.fixture
def commands(finished: Finished, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    photograph = next(iter(finished.validation.iterdir()))
    export = finished.workspace / "export"
    return {
        "encode": ("encode", export, photograph, "-o", tmp_path / "tokens.npz"),
        "decode": ("decode", export, tmp_path / "tokens.npz", "-o", tmp_path / "out"),
        "generate": ("generate", finished.workspace, "--labels", 0, "-o", tmp_path / "out"),
    }


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_gpu_that_is_not_there_is_one_clear_line(
    commands: dict[str, tuple[object, ...]], command: str, tmp_path: Path
) -> None:
    outcome = arvg(*commands[command], "--device", "cuda:0")
    problem = this_device().driver_problem
    assert_refused(outcome, 7, f"--device cuda:0: {problem}", "--device cpu")
    assert not list(tmp_path.iterdir())
    assert_refused(arvg(*commands[command], "--device", "tpu"), 7, "'tpu' is no device", "cuda:0")


def test_cpu_and_auto_write_the_same_tokens_and_images(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    found, stem = [], Path(str(commands["encode"][2])).stem
    for device in ("cpu", "auto"):
        assert arvg(*commands["encode"], "--device", device, "--force").code == 0
        assert (
            arvg(*commands["decode"], "--device", device, "--allow-fallback", "--force").code == 0
        )
        found.append([(tmp_path / name).read_bytes() for name in ("tokens.npz", f"out/{stem}.png")])
    assert found[0] == found[1]


def test_a_report_says_what_executed_the_engine(finished: Finished, workspace: Path) -> None:
    asked = ("validate", workspace, "--name", "int8", "--images", finished.validation)
    options = ("--size", 64, "--rounds", 0)
    folder = workspace / "validate" / "int8"
    assert arvg(*asked, *options, "--device", "cpu").code == 0
    report = json.loads((folder / "report.json").read_bytes())
    assert report["ran"] == {"int8/onnxruntime": "cpu"}
    assert report["fallbacks"] == []
    assert "engines/int8/onnxruntime ran on cpu" in (folder / "report.md").read_text()
    written = (folder / "report.json").stat().st_mtime_ns
    assert arvg(*asked, *options).code == 0  # auto is the CPU here: nothing is to be done
    assert (folder / "report.json").stat().st_mtime_ns == written
    refused = arvg(*asked, *options, "--device", "cuda:0")
    assert_refused(refused, 7, "--device cuda:0", str(this_device().driver_problem))
