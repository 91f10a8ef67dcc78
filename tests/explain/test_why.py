"""Why a stage would run again: the files, options and versions that changed, by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.explain.inspect import fact_text
from arvg_trt.explain.why import Change, changes
from arvg_trt.workspace.manifest import MANIFEST, Manifest
from arvg_trt.workspace.workspace import RECIPE_FILE

from ..command_line import Finished, arvg, assert_refused, digests

STAGES = ("export", "calibrate", "quantize", "build", "validate")


def why(*words: object) -> list[dict[str, Any]]:
    outcome = arvg("why", *words, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    folders: list[dict[str, Any]] = json.loads(outcome.out)["folders"]
    return folders


def rewrite(folder: Path, **values: Any) -> None:
    """Give a folder the manifest of other circumstances."""
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_changed_after_a_run(stage: str, finished: Finished, workspace: Path) -> None:
    before = digests(workspace)
    (found,) = why(stage, workspace, "--recipe", finished.recipe)
    assert (found["state"], found["changes"], found["note"]) == ("up to date", [], None)
    assert digests(workspace) == before


def test_folders_of_images_are_known_from_the_recipe_alone(workspace: Path) -> None:
    """A workspace does not say where on a machine its images were."""
    for stage in STAGES:
        (found,) = why(stage, workspace)
        expected = (
            ("unchanged", True) if stage in ("calibrate", "validate") else ("up to date", False)
        )
        assert (found["state"], "--images" in (found["note"] or "")) == expected, found


def test_an_option_is_said_with_both_values(finished: Finished, workspace: Path) -> None:
    recipe = workspace.parent / "mine.toml"
    recipe.write_text(finished.recipe.read_text() + '\n[quantize]\nsmoothing = "gps"\n')
    (found,) = why("quantize", workspace, "--recipe", recipe)
    change = {"kind": "option", "name": "smoothing", "old": "search", "new": "gps"}
    assert (found["state"], found["changes"]) == ("runs again", [change])
    text = arvg("why", "quantize", workspace, "--recipe", recipe).out
    assert '  option smoothing: "search" -> "gps"\n' in text


def test_a_version_is_said(workspace: Path) -> None:
    folder = workspace / "quantize" / "int8"
    versions = json.loads((folder / MANIFEST).read_text())["versions"]
    rewrite(folder, versions={**versions, "numpy": "0.9"})
    (found,) = why("quantize", workspace)
    assert [(c["kind"], c["name"], c["old"]) for c in found["changes"]] == [
        ("version", "numpy", "0.9")
    ]


def test_an_input_that_was_made_anew_is_said_by_its_digest(workspace: Path) -> None:
    folder = workspace / "calibrate"
    inputs = json.loads((folder / MANIFEST).read_text())["inputs"]
    name = next(key for key in inputs if key.endswith("encoder.onnx"))
    rewrite(folder, inputs={**inputs, name: "0" * 64})
    outcome = arvg("why", "calibrate", workspace)
    assert outcome.code == 0
    assert re.search(rf"  input {name}: 0{{12}} -> {inputs[name][:12]}\n", outcome.out)


def test_a_changed_and_a_missing_output_are_said(workspace: Path) -> None:
    folder = workspace / "validate" / "int8"
    (folder / "report.md").unlink()
    (folder / "report.html").write_text("other")
    (found,) = why("validate", workspace)
    said = {c["name"]: c["new"] for c in found["changes"] if c["kind"] == "output"}
    assert said.keys() == {"report.md", "report.html"}
    assert said["report.md"] is None


def test_without_a_recipe_inputs_and_versions_are_compared(workspace: Path) -> None:
    (workspace / RECIPE_FILE).unlink()
    for stage in STAGES:
        (found,) = why(stage, workspace)
        assert (found["state"], found["recipe"]) == ("unchanged", None)
        assert found["note"] == "options were not compared: give --recipe"
    export = workspace / "export"
    outputs = json.loads((export / MANIFEST).read_text())["outputs"]
    rewrite(export, outputs={**outputs, "encoder.onnx": "1" * 64})
    (found,) = why("quantize", workspace)
    assert [(c["kind"], c["name"], c["new"]) for c in found["changes"]] == [
        ("input", "export/encoder.onnx", "1" * 64)
    ]


def test_a_stage_behind_a_missing_one_says_so(workspace: Path) -> None:
    shutil.rmtree(workspace / "quantize")
    (found,) = why("quantize", workspace)
    assert found["state"] == "never run"
    (found,) = why("validate", workspace)
    assert "compared without its recipe: " in found["note"]
    assert {c["new"] for c in found["changes"] if c["name"].startswith("quantize/")} == {None}


def test_another_quantization_is_not_compared_with_the_recipe(workspace: Path) -> None:
    shutil.copytree(workspace / "quantize" / "int8", workspace / "quantize" / "mine")
    (found,) = why("quantize", workspace, "--name", "mine")
    assert (found["state"], found["recipe"]) == ("unchanged", None)
    (found,) = why("build", workspace, "--name", "none")
    assert found["state"] == "never run"


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    assert_refused(arvg("why", "export", tmp_path), 9, "is no workspace")
    assert not list(tmp_path.iterdir())


MAPS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(["1", "2"]))


@given(MAPS, MAPS, MAPS, MAPS)
def test_there_are_changes_exactly_where_keys_differ(
    a: dict[str, str], b: dict[str, str], options: dict[str, str], others: dict[str, str]
) -> None:
    old = Manifest(stage="export", inputs=a, options=options, versions=b)
    new = Manifest(stage="export", inputs=b, options=others, versions=a)
    assert bool(changes(old, new)) == (old.key() != new.key())
    assert not changes(old, old)


def test_long_lists_are_bounded_in_a_line_and_whole_in_json() -> None:
    names = [f"photo {k}.png" for k in range(40)]
    change = Change(kind="option", name="images", old=names[:4], new=names)
    assert str(change) == (
        'option images: ["photo 0.png", "photo 1.png", "photo 2.png", "photo 3.png"] -> '
        '["photo 0.png", "photo 1.png", "photo 2.png" and 37 more]'
    )
    assert len(change.new) == 40
    assert fact_text("options", names) == "photo 0.png, photo 1.png, photo 2.png and 37 more"
    assert fact_text("stages", names).endswith("photo 39.png")
