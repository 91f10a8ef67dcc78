"""An export into a workspace replaces no other model that later stages were made from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.workspace.manifest import Manifest, write_manifest
from arvg_trt.workspace.replaced import require_same_model
from arvg_trt.workspace.workspace import Workspace

from ..command_line import MODEL, Finished, arvg, assert_refused, digests

OTHER = "var-mini"


def make(root: Path, place: str, **options: object) -> None:
    folder = root / place
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest(stage="any", inputs={}, options=options, versions={}), {})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the export of a model, and nothing made from it."""
    make(tmp_path, "export", model=MODEL)
    return Workspace(tmp_path)


def test_an_export_alone_and_the_same_model_are_replaced(workspace: Workspace) -> None:
    require_same_model(workspace, OTHER)
    make(workspace.root, "quantize/int8")
    require_same_model(workspace, MODEL)
    require_same_model(Workspace(workspace.root / "empty"), OTHER)


def test_later_stages_of_another_model_are_counted(workspace: Workspace) -> None:
    for place in ("calibrate", "quantize/a", "quantize/b", "engines/a/onnxruntime"):
        make(workspace.root, place)
    with pytest.raises(WorkspaceError) as caught:
        require_same_model(workspace, OTHER)
    assert f"holds {MODEL} with 1 calibration, 2 quantizations, 1 engine" in str(caught.value)
    assert "name another folder" in str(caught.value) and "--force" in str(caught.value)


def test_graphs_of_ones_own_are_another_model_by_their_names(tmp_path: Path) -> None:
    make(tmp_path, "export", model="onnx", graphs=["encoder", "decoder"], title="mine")
    make(tmp_path, "calibrate")
    require_same_model(Workspace(tmp_path), "onnx", ["decoder", "encoder"])
    with pytest.raises(WorkspaceError, match="holds mine with 1 calibration"):
        require_same_model(Workspace(tmp_path), "onnx", ["model"])


def test_commands_refuse_and_force_replaces(finished: Finished, tmp_path: Path) -> None:
    root = shutil.copytree(finished.workspace, tmp_path / "ws")
    before = digests(root)
    graph = root / "export" / "decoder.onnx"
    refused = arvg("export", "onnx", root, "--graph", graph)
    assert_refused(refused, 9, f"holds {MODEL} with 1 calibration, 1 quantization")
    recipe = tmp_path / "other.toml"
    recipe.write_text(
        f'schema = "arvg-trt/recipe/v1"\nmodel = "{OTHER}"\nworkspace = "{root.as_posix()}"\n'
        'name = "w8a8"\n'
    )
    for words in (("run", recipe), ("run", recipe, "--dry-run")):
        assert_refused(arvg(*words), 9, f"holds {MODEL} with 1 calibration, 1 quantization")
    assert digests(root) == before
    own = tmp_path / "decoder"
    own.mkdir()
    for file in graph.parent.glob("decoder.onnx*"):
        (own / file.name).write_bytes(file.read_bytes())
    forced = arvg("export", "onnx", root, "--graph", own / "decoder.onnx", "--force")
    assert forced.code == 0, forced.err
    stale = arvg("build", root, "--name", "int8")
    assert stale.code == 9 and "if onnx is to be its model now" in stale.err, stale.err
