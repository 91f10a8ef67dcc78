"""The public names, and the page of the docs that shows them, run as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import arvg_trt
from arvg_trt.errors import AccuracyError, WorkspaceError
from arvg_trt.runtime.images import save_image

from .command_line import Finished
from .minis.minis import Mini

PAGE = Path(str(arvg_trt.__file__)).resolve().parent / "docs" / "python.md"
BLOCK = re.compile(r"^```(python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def test_the_page_of_the_docs_runs(
    mini_of: Callable[[str], Mini],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mini_of("var").workspace, tmp_path / "out" / "var")
    save_image(np.full((64, 64, 3), 128, np.uint8), tmp_path / "photo.png")
    blocks = BLOCK.findall(PAGE.read_text())
    assert [kind for kind, _ in blocks].count("python") == 6
    for kind, text in blocks:
        if kind == "toml":
            (tmp_path / "mine.toml").write_text(text)
            continue
        exec(compile(text, str(PAGE), "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("engine None ")
    assert shown[-1] == "False"


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
