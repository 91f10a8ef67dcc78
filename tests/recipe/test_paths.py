"""A path of a recipe that is not there is said with the recipe, the key, and where it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvg_trt.api import run_recipe
from arvg_trt.errors import CalibrationError, ExportError, RecipeError
from arvg_trt.recipe.file import load_recipe
from arvg_trt.recipe.paths import named_paths, require_paths

from ..command_line import Finished, arvg, assert_refused

RECIPE = """\
model = "onnx"
graphs = ["model.onnx"]
workspace = "out/own"
name = "int8"
[calibrate]
feeds = "calibration.npz"
[quantize]
plan = "plan.json"
plan_for = "machine.json"
[validate]
feeds = "held_out.npz"
"""
NAMED = {
    "graphs": "model.onnx",
    "[calibrate] feeds": "calibration.npz",
    "[quantize] plan": "plan.json",
    "[quantize] plan_for": "machine.json",
    "[validate] feeds": "held_out.npz",
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in a folder with its files, as another folder beside it names it."""
    for folder in ("repo", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "repo" / "own.toml").write_text(RECIPE)
    for name in NAMED.values():
        (tmp_path / "repo" / name).touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return "../repo/own.toml"


def test_files_are_named_by_their_keys(recipe: str) -> None:
    assert dict(named_paths(load_recipe(recipe))) == NAMED


@pytest.mark.parametrize(("key", "path"), NAMED.items())
def test_a_missing_file_is_said_with_its_key(
    key: str, path: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("../repo")
    require_paths(load_recipe("own.toml"), "own.toml")
    Path(path).unlink()
    kind = ExportError if key == "graphs" else CalibrationError
    kind_of_key = RecipeError if key.startswith("[quantize]") else kind
    with pytest.raises(kind_of_key) as caught:
        require_paths(load_recipe("own.toml"), "own.toml")
    assert str(caught.value) == (
        f"own.toml: {key} names {path}: no such file (paths in a recipe are relative to the folder "
        f"that the command runs in, {Path.cwd()})"
    )


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_run_in_another_folder_says_where_to_run_it(recipe: str, more: tuple[str, ...]) -> None:
    words = (
        f"{recipe}: graphs names model.onnx: no such file",
        "relative to the folder that the command runs in: run it in ../repo, where the file is",
    )
    assert_refused(arvg("run", recipe, *more), 4, *words)
    assert_refused(arvg("sweep", recipe), 4, *words)
    with pytest.raises(ExportError, match="graphs names model"):
        run_recipe(recipe)
    assert not Path("out").exists()


@pytest.mark.parametrize(("stage", "code"), [("calibrate", 5), ("quantize", 3), ("validate", 5)])
def test_a_stage_by_a_recipe_says_it_of_its_own_table(stage: str, code: int, recipe: str) -> None:
    outcome = arvg(stage, "ws", "--recipe", recipe)
    assert_refused(outcome, code, f"{recipe}: [{stage}] ", "run it in ../repo")


def test_what_an_option_replaces_need_not_be_there(
    recipe: str, finished: Finished, workspace: Path
) -> None:
    own = workspace.parent / "own.toml"
    own.write_text(finished.recipe.read_text() + '\n[quantize]\nplan = "nowhere.json"\n')
    assert_refused(arvg("quantize", workspace, "--recipe", own), 3, "[quantize] plan names nowhere")
    given = ("--name", "mine", "--plan", workspace / "quantize" / "int8" / "plan.json")
    outcome = arvg("quantize", workspace, "--recipe", own, *given)
    assert outcome.code == 0, outcome.err
