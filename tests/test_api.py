"""The public names; `tests/docs` runs the page that shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import arvg_trt
from arvg_trt.errors import AccuracyError, WorkspaceError

from .command_line import Finished


def test_every_public_name_is_there() -> None:
    for name in arvg_trt.__all__:
        assert getattr(arvg_trt, name).__name__ == name
    assert {*arvg_trt.__all__} <= {*dir(arvg_trt)}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Workspaces'"):
        _ = arvg_trt.Workspaces


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, arvg_trt; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert "arvg_trt" in loaded
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "msgspec", "click"}


def test_the_public_names_load_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, arvg_trt\n"
        "for name in arvg_trt.__all__: getattr(arvg_trt, name)\n"
        "print(*sorted(m.partition('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert "msgspec" in loaded
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxscript", "skimage", "matplotlib"}


class Elsewhere:
    """A path that is neither a text nor a `Path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths_are_given_as_anything_that_is_one(finished: Finished, tmp_path: Path) -> None:
    root, recipe = finished.workspace, finished.recipe
    places = [arvg_trt.Workspace(kind(root)) for kind in (str, Path, Elsewhere)]
    first = places[0].report().headline
    assert {place.report().headline for place in places} == {first}
    for kind in (str, Path, Elsewhere):
        assert arvg_trt.load_report(kind(root / "validate" / "int8")).headline == first
        assert arvg_trt.load_recipe(kind(recipe)) == arvg_trt.load_recipe(recipe)
        assert arvg_trt.ImageTokenizer.open(kind(root)).stride == 8
        report = kind(root / "validate" / "int8")
        assert not arvg_trt.compare_reports(report, report).regressed
    with pytest.raises(WorkspaceError):
        arvg_trt.Generator.open(Elsewhere(tmp_path))


def test_a_failed_gate_raises_and_the_report_is_there(tmp_path: Path) -> None:
    workspace = arvg_trt.Workspace(tmp_path / "ws")
    workspace.export("cosmos-mini-di8x8")
    workspace.calibrate(images="skimage:coffee", samples=1, size=64)
    workspace.quantize(smoothing=0)
    with pytest.raises(AccuracyError, match="psnr>=99"):
        workspace.validate(images="skimage:chelsea", size=64, rounds=0, gates=["psnr>=99"])
    assert workspace.report().passed is False
    with pytest.raises(WorkspaceError):
        workspace.report("other")
