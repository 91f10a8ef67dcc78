"""A new quantization is expected to take what the last one of the workspace took."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvg_trt.explain.dry_run import plan_run
from arvg_trt.explain.earlier_runs import latest_alike
from arvg_trt.recipe.base import with_changes
from arvg_trt.recipe.file import load_recipe
from arvg_trt.workspace.times import Took, read_times, record_time
from arvg_trt.workspace.workspace import WORKSPACE_FILE

from ..command_line import Finished, arvg

TIMES = {
    name: Took(seconds=number, bytes=1)
    for number, name in enumerate(
        (
            "export",
            "quantize/a",
            "engines/fp16/rtx-sm89",
            "engines/a/onnxruntime",
            "quantize/b",
            "engines/a/rtx-sm89",
        )
    )
}


@pytest.mark.parametrize(
    ("folder", "like"),
    [
        ("quantize/new", "quantize/b"),
        ("quantize/b", "quantize/a"),
        ("engines/b/onnxruntime", "engines/a/onnxruntime"),
        ("engines/b/rtx-sm89", "engines/a/rtx-sm89"),
        ("engines/b/rtx-sm86", None),  # other targets
        ("engines/fp16/onnxruntime", None),  # unquantized graphs
        ("validate/new", None),
        ("export", None),
        ("calibrate", None),
    ],
)
def test_the_latest_of_the_same_stage_is_taken(folder: str, like: str | None) -> None:
    found = latest_alike(TIMES, folder)
    assert (found[0] if found else None) == like
    assert found is None or found[1] == TIMES[found[0]]


def test_a_stage_that_runs_again_is_the_latest(tmp_path: Path) -> None:
    (tmp_path / WORKSPACE_FILE).write_text("{}")
    for name in ("a", "b", "a"):
        (tmp_path / "quantize" / name).mkdir(parents=True, exist_ok=True)
        record_time(tmp_path / "quantize" / name, 1.0, None)
    assert [*read_times(tmp_path)] == ["quantize/b", "quantize/a"]
    record_time(tmp_path.parent / "elsewhere", 1.0, None)
    assert not (tmp_path.parent / "times.json").exists()


def test_a_new_name_is_estimated_from_another(finished: Finished, workspace: Path) -> None:
    recipe = with_changes(load_recipe(str(finished.recipe)), name="new", workspace=str(workspace))
    times = read_times(workspace)
    rows = plan_run(recipe)
    assert [row.state for row in rows] == ["up to date"] * 2 + ["runs"] * 3
    for row in rows[2:]:
        other = row.folder.replace("new", load_recipe(str(finished.recipe)).name)
        assert (row.source, row.like_folder, row.seconds) == (
            "estimate",
            other,
            times[other].seconds,
        )
    path = workspace / "new.toml"
    path.write_text(finished.recipe.read_text().replace('name = "', 'name = "x', 1))
    text = arvg("run", path, "--workspace", workspace, "--dry-run").out
    assert f"(estimate from {rows[2].like_folder} here)" in text


def test_a_stage_s_own_command_is_timed(finished: Finished, workspace: Path) -> None:
    """Before, only `run` left times: stages by hand told the next dry run nothing."""
    assert "quantize/hand" not in read_times(workspace)
    outcome = arvg("quantize", workspace, "--recipe", finished.recipe, "--name", "hand", "--json")
    assert outcome.code == 0, outcome.err
    took = read_times(workspace)["quantize/hand"]
    assert took.seconds > 0
    files = (workspace / "quantize" / "hand").rglob("*")
    assert took.bytes == sum(path.stat().st_size for path in files if path.is_file())
