"""Tests of which engine `validate` executes, by device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arvg_trt.errors import BundleError
from arvg_trt.runtime.devices import Device, Gpu
from arvg_trt.runtime.sessions.placement import TENSORRT_RTX, Placement
from arvg_trt.validate.measure import candidates
from arvg_trt.validate.measure.candidates import candidate_folders, executed_engine
from arvg_trt.validate.report.schema import ENGINE, HALF_PRECISION
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.stage import SilentReporter
from arvg_trt.workspace.workspace import Workspace

CPU_ENGINE, OLD, FITTING = "int8/onnxruntime", "int8/rtx-sm86", "int8/rtx-sm89"


class Warnings(SilentReporter):
    """Keep what is warned of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def built(backend: str) -> Manifest:
    options = {"backend": backend, "name": "int8"}
    return Manifest(stage="build", inputs={}, options=options, versions={})


ENGINES = {
    CPU_ENGINE: built("onnxruntime"),
    OLD: built("tensorrt_rtx"),
    FITTING: built("tensorrt_rtx"),
    "fp16/rtx-sm89": built("tensorrt_rtx"),
}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path / "ws") as opened:
        yield opened


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give this machine a GPU on which the engines of a name open."""
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", 89, 24 << 30)
    machine = Device("Linux", "x86_64", (gpu,), "13.0", None, (), None, None, None)
    monkeypatch.setattr(candidates, "this_device", lambda: machine)

    def opens(name: str) -> None:
        def placed(folder: Path, device: str) -> Placement:
            if name and folder.name == name:
                return Placement(TENSORRT_RTX)
            raise BundleError(f"{folder.name} does not run here")

        monkeypatch.setattr(candidates, "placement_of", placed)

    return opens


@pytest.mark.parametrize("device", ["auto", "cuda:0"])
def test_on_a_gpu_the_first_engine_that_opens_is_executed(
    workspace: Workspace, with_gpu: Callable[[str], None], device: str
) -> None:
    with_gpu("rtx-sm89")
    warned = Warnings()
    found = executed_engine(workspace, "int8", ENGINES, device, warned)
    assert (found.key, found.device) == (FITTING, "cuda:0")
    assert found.provider == f"cuda:0, {TENSORRT_RTX}"
    folders = candidate_folders(workspace, "int8", ENGINES, found.key, warned)
    assert folders[ENGINE] == workspace.folder("engines", "int8", "rtx-sm89")
    assert folders[HALF_PRECISION].name == "rtx-sm86"
    assert not warned.lines


def test_without_one_auto_warns_and_takes_the_cpus_and_a_named_gpu_is_an_error(
    workspace: Workspace, with_gpu: Callable[[str], None]
) -> None:
    with_gpu("")
    warned = Warnings()
    found = executed_engine(workspace, "int8", ENGINES, "auto", warned)
    assert (found.key, found.device, found.provider) == (CPU_ENGINE, "cpu", "cpu")
    assert len(warned.lines) == 2 and all("on the CPU" in line for line in warned.lines)
    with pytest.raises(BundleError, match="rtx-sm86 does not run here"):
        executed_engine(workspace, "int8", ENGINES, "cuda:0", warned)
    only_cpu = {CPU_ENGINE: ENGINES[CPU_ENGINE]}
    with pytest.raises(BundleError, match="int8 has no TensorRT engine"):
        executed_engine(workspace, "int8", only_cpu, "cuda:0", warned)
    assert executed_engine(workspace, "int8", only_cpu, "cpu", warned).key == CPU_ENGINE
    assert executed_engine(workspace, "int8", {}, "cpu", warned).key is None


def test_chosen_engine_for_the_cpu_comes_before_others_which_are_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {
        "int8/cpu": built("cpu"),
        CPU_ENGINE: built("onnxruntime"),
        "int8/openvino": built("openvino"),
    }
    warned = Warnings()
    found = executed_engine(workspace, "int8", engines, "cpu", warned)
    assert found.key == "int8/cpu"
    assert [line.partition(" ")[0] for line in warned.lines] == ["int8/openvino", CPU_ENGINE]
    folders = candidate_folders(workspace, "int8", engines, found.key, warned)
    assert HALF_PRECISION not in folders and folders[ENGINE].name == "cpu"

    def refused(folder: Path, device: str) -> Placement:
        raise BundleError(f"{folder.name} does not run here")

    monkeypatch.setattr(candidates, "placement_of", refused)
    monkeypatch.setattr(candidates, "is_openvino", lambda folder: folder.name != "onnxruntime")
    warned = Warnings()
    assert executed_engine(workspace, "int8", engines, "cpu", warned).key == CPU_ENGINE
    assert [line.partition(" ")[0] for line in warned.lines] == ["cpu", "openvino"]
