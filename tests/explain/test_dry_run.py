"""A dry run says what a run would do, changes nothing, and refuses what cannot succeed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from arvg_trt.engines.tensorrt.engine import foreseen_folder
from arvg_trt.errors import (
    ArvgError,
    BuildError,
    ExportError,
    GenerationError,
    RecipeError,
    WorkspaceError,
)
from arvg_trt.explain.dry_run import plan_run
from arvg_trt.explain.recipes import adapt_recipe
from arvg_trt.export.checkpoint import resolve
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.variants import MODELS
from arvg_trt.pipeline.run import check_recipe
from arvg_trt.recipe.base import with_changes
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.recipe.file import load_recipe
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.workspace.times import TIMES_FILE, read_times
from arvg_trt.workspace.workspace import WORKSPACE_FILE, Workspace

from ..command_line import Finished, arvg, assert_refused, digests
from ..export.checkpoint.hub import Served
from .test_checkpoint import sparse_var

STAGES = ["export", "calibrate", "quantize", "build", "validate"]


def planned(recipe: Path, workspace: Path, *more: object) -> list[dict[str, Any]]:
    outcome = arvg("run", recipe, "--workspace", workspace, "--dry-run", "--json", *more)
    assert outcome.code == 0, outcome.err
    rows: list[dict[str, Any]] = json.loads(outcome.out)["planned"]
    assert [row["stage"] for row in rows] == STAGES
    return rows


def states(rows: list[dict[str, Any]]) -> list[str]:
    return [row["state"] for row in rows]


def changed(recipe: Recipe, table: str, **values: Any) -> Recipe:
    return with_changes(recipe, **{table: with_changes(getattr(recipe, table), **values)})


def test_a_new_workspace_runs_all_and_is_not_made(finished: Finished, tmp_path: Path) -> None:
    rows = planned(finished.recipe, tmp_path / "new")
    assert states(rows) == ["runs"] * 5
    assert not (tmp_path / "new").exists()
    assert all(row["seconds"] is None and row["memory"] is None for row in rows)
    assert (rows[0]["disk"], rows[0]["source"]) == (4 * 3_036_214, "estimate")
    text = arvg("run", finished.recipe, "--workspace", tmp_path / "new", "--dry-run").out
    assert "time, memory and disk are known after a first run here" in text


def test_folders_of_engines_are_named_before_there_are_any(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ("run", "cosmos-mini-int8", "--workspace", tmp_path / "new", "--dry-run", "--json")
    rows = json.loads(arvg(*words).out)["planned"]
    assert [(row["folder"], row["makes"]) for row in rows if row["stage"] == "build"] == [
        ("engines/int8/onnxruntime", "onnxruntime engines"),
        ("engines/int8/rtx-sm86-sm89-sm120", "tensorrt_rtx engines for sm86, sm89, sm120"),
        (
            "engines/fp16/rtx-sm86-sm89-sm120",
            "tensorrt_rtx engines of the unquantized graphs for sm86, sm89, sm120",
        ),
    ]


@pytest.mark.parametrize(
    ("backend", "targets", "folder"),
    [
        ("tensorrt_rtx", ("rtx5090", "rtx3090"), "rtx-sm86-sm120"),
        ("tensorrt_rtx", ("rtx4090", "rtx4080"), "rtx-sm89"),
        ("tensorrt", (), "tensorrt-smNN"),
    ],
)
def test_the_folder_of_targets_in_any_order_is_that_of_the_build(
    backend: Literal["tensorrt_rtx", "tensorrt"], targets: tuple[str, ...], folder: str
) -> None:
    assert foreseen_folder(BuildOptions(backend=backend, targets=targets)) == folder


def test_what_is_up_to_date_is_said_and_nothing_changes(
    finished: Finished, workspace: Path
) -> None:
    before = digests(workspace)
    rows = planned(finished.recipe, workspace)
    assert states(rows) == ["up to date"] * 5
    assert digests(workspace) == before


def test_a_change_runs_its_stage_and_all_behind_it(finished: Finished, workspace: Path) -> None:
    text = finished.recipe.read_text().replace("samples = 2", "samples = 3")
    recipe = workspace.parent / "changed.toml"
    recipe.write_text(text)
    rows = planned(recipe, workspace)
    assert states(rows) == ["up to date", "runs", "runs", "runs", "runs"]
    assert rows[1]["because"] == ["option samples: 2 -> 3"]
    assert rows[2]["because"] == rows[4]["because"] == ["calibrate runs"]
    outcome = arvg("run", recipe, "--workspace", workspace, "--json")
    stages = json.loads(outcome.out)["stages"]
    assert [stage["skipped"] for stage in stages] == [True, False, False, False, False]


def test_other_validation_images_do_not_export_again(finished: Finished, workspace: Path) -> None:
    """The pictures of the export's own comparison are of no recipe."""
    text = finished.recipe.read_text()
    other = changed(load_recipe(str(finished.recipe)), "validate", images="skimage:coffee")
    assert other.validate.images not in text
    rows = plan_run(with_changes(other, workspace=str(workspace)))
    assert [row.state for row in rows] == ["up to date"] * 4 + ["runs"]


def test_times_are_those_of_the_earlier_run(finished: Finished, workspace: Path) -> None:
    times = read_times(workspace)
    rows = planned(finished.recipe, workspace)
    assert {*times} == {row["folder"] for row in rows}
    for row in rows:
        took = times[row["folder"]]
        assert (row["seconds"], row["disk"], row["source"]) == (
            took.seconds,
            took.bytes,
            "earlier run",
        )
        files = (workspace / row["folder"]).rglob("*")
        assert took.bytes == sum(path.stat().st_size for path in files if path.is_file())
    (workspace / TIMES_FILE).write_text("damaged")
    assert all(row["seconds"] is None for row in planned(finished.recipe, workspace))


def test_a_removed_folder_runs_again(finished: Finished, workspace: Path) -> None:
    shutil.rmtree(workspace / "engines")
    rows = planned(finished.recipe, workspace)
    assert states(rows) == ["up to date"] * 3 + ["runs"] * 2


def test_a_published_checkpoint_is_counted_and_not_fetched(served: Served, tmp_path: Path) -> None:
    recipe = load_recipe("var-w8a8")
    names = ("var_d16.pth", "vae_ch160v4096z32.pth")
    repos = ("FoundationVision/var", "someone/else")
    served.files |= {(repo, name): b"x" for repo in repos for name in names}
    found = adapt_recipe("var-w8a8", recipe, "var-d16", "FoundationVision/var", str(tmp_path / "w"))
    export = plan_run(found)[0]
    assert export.fetch_checked is True
    assert export.fetch == (
        "FoundationVision/var/var_d16.pth",
        "FoundationVision/var/vae_ch160v4096z32.pth",
    )
    assert export.fetch_bytes == 1_243_116_346 + 436_075_834
    assert not served.asked
    other = adapt_recipe("var-w8a8", recipe, "var-d16", "someone/else", str(tmp_path / "w"))
    assert (plan_run(other)[0].fetch, plan_run(other)[0].fetch_bytes) == (("someone/else",), None)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("FoundationVison/gone", "FoundationVison/gone: no such repository, or a private one"),
        ("someone/gated", "someone/gated: is gated"),
        ("someone/other", "someone/other: has none of the expected files"),
    ],
)
def test_an_id_that_the_hub_refuses_is_refused(checkpoint: str, words: str, tmp_path: Path) -> None:
    for folder in ("new", "there"):
        place = tmp_path / folder
        if folder == "there":
            Workspace(place).__enter__().__exit__(None)
        asked = ("--model", "var-d16", "--checkpoint", checkpoint, "--workspace", place)
        assert_refused(arvg("run", "var-w8a8", *asked, "--dry-run"), 4, words)


@pytest.mark.usefixtures("no_hub")
def test_an_id_that_cannot_be_checked_is_said(tmp_path: Path) -> None:
    asked = ("--model", "var-d16", "--checkpoint", "FoundationVision/vra", "--workspace", tmp_path)
    outcome = arvg("run", "var-w8a8", *asked, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "fetches FoundationVision/vra: size unknown" in outcome.out
    assert "not checked: the Hugging Face Hub cannot be reached" in outcome.out
    as_json = json.loads(arvg("run", "var-w8a8", *asked, "--dry-run", "--json").out)
    assert as_json["planned"][0]["fetch_checked"] is False


def test_a_checkpoint_is_looked_for_once(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may have to be read for that, to tell a transformer from a tokenizer."""
    asked = []

    def resolved(spec: str, *more: Any, **options: Any) -> list[Path]:
        asked.append(spec)
        return resolve_checkpoint(spec, *more, **options)

    monkeypatch.setattr(resolve, "resolve_checkpoint", resolved)
    recipe = load_recipe("var-w8a8")
    names = ("var_d16.pth", "vae_ch160v4096z32.pth")
    served.files |= {("FoundationVision/var", name): b"x" for name in names}
    with Workspace(tmp_path / "there") as there:
        assert (there.root / WORKSPACE_FILE).is_file()
    for checkpoint, model in (("FoundationVision/var", "var-d16"), (None, "var-mini")):
        for name in ("new", "there"):
            found = adapt_recipe("var-w8a8", recipe, model, checkpoint, str(tmp_path / name))
            assert bool(plan_run(found)[0].fetch) is (checkpoint is not None)
            assert len(asked) == 1, (checkpoint, name)
            asked.clear()


def test_a_damaged_file_of_the_cache_is_refused_and_not_fetched(
    empty_cache: Path, tmp_path: Path
) -> None:
    """`run` refuses it too, rather than fetch it again in silence."""
    repo = "FoundationVision/var"
    snapshot = empty_cache / f"models--{repo.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("0" * 40)
    folder = snapshot / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    for name in ("var_d16.pth", "vae_ch160v4096z32.pth"):
        (folder / name).write_bytes(b"damaged")
    recipe = load_recipe("var-w8a8")
    found = adapt_recipe("var-w8a8", recipe, "var-d16", repo, str(tmp_path / "w"))
    with pytest.raises(ExportError, match="is not the file that was published"):
        plan_run(found)


def test_a_disk_without_room_is_refused(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("var-w8a8")
    found = adapt_recipe("var-w8a8", recipe, "var-d16", "FoundationVision/var", str(tmp_path / "w"))
    usage = shutil.disk_usage(tmp_path)
    small = usage._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: small)
    with pytest.raises(WorkspaceError, match=r"takes about 1\.\d+ GB of disk, and 1\.00 GB are"):
        plan_run(found)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    words = ("--model", "var-d16", "--workspace", tmp_path / "w", "--dry-run")
    outcome = arvg("run", "var-w8a8", *words)
    assert_refused(outcome, 4, "no checkpoint given for var-d16 (--checkpoint PATH")
    outcome = arvg("run", "var-w8a8", *words, "--checkpoint", tmp_path / "none")
    assert_refused(outcome, 4, "no such file or folder")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("there", [False, True])
def test_weights_of_a_smaller_model_are_refused(tmp_path: Path, there: bool) -> None:
    if there:
        with Workspace(tmp_path / "w"):
            pass
    words = ("--model", "rar-b", "--checkpoint", MODELS / "rar-mini", "--dry-run")
    outcome = arvg("run", "rar-w8a8", *words, "--workspace", tmp_path / "w")
    assert_refused(outcome, 4, "is not rar-b: ", "(it is a rar-mini)")
    assert str(MODELS / "rar-mini") in outcome.err


def test_gates_of_the_mini_do_not_go_along(tmp_path: Path) -> None:
    folder = sparse_var(tmp_path / "var-d16")
    words = ("--model", "var-d16", "--checkpoint", folder, "--dry-run")
    outcome = arvg("run", "var-w8a8", *words, "--workspace", tmp_path / "w")
    assert outcome.code == 0
    said = "no gates are checked for var-d16: those of the recipe were measured on var-mini\n"
    assert outcome.err == said
    assert "top1" not in outcome.out


@pytest.mark.parametrize(
    ("preset", "table", "values", "error", "says"),
    [
        ("var-w8a8", "calibrate", {"labels": "207"}, GenerationError, "classes are 0 to 9"),
        ("var-w8a8", "validate", {"labels": "0-10"}, GenerationError, "classes are 0 to 9"),
        ("cosmos-mini-log4", "quantize", {"attention": "int8"}, RecipeError, "only a generator's"),
        (
            "var-w8a16",
            "quantize",
            {"quantize_method": "fp8", "activation_bits": 8, "rounding": "nearest"},
            BuildError,
            "wants fp8, which ONNX Runtime lacks",
        ),
        ("var-w8a8", "", {"name": "fp16"}, RecipeError, "names the engines of the unquantized"),
        ("var-w8a8", "validate", {"gates": ["top1<=1", "x>1"]}, ArvgError, "x"),
    ],
)
def test_what_a_later_stage_refuses_is_refused_first(
    preset: str, table: str, values: dict[str, Any], error: type[ArvgError], says: str
) -> None:
    recipe = load_recipe(preset)
    check_recipe(recipe)
    odd = changed(recipe, table, **values) if table else with_changes(recipe, **values)
    with pytest.raises(error, match=says):
        check_recipe(odd)
    with pytest.raises(error, match=says):
        plan_run(odd)


@pytest.mark.parametrize("target", ["sm75", "rtx3090"])
def test_a_target_without_the_format_is_refused_first(target: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = load_recipe("var-fp8")
    check_recipe(recipe)
    build = [{"backend": "tensorrt_rtx", "targets": [target]}]
    with pytest.raises(BuildError, match="wants fp8, which"):
        check_recipe(with_changes(recipe, build=build))


def test_builds_of_tensorrt_are_estimated_by_their_folders(
    finished: Finished, workspace: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = workspace.parent / "rtx.toml"
    tables = '\n[[build]]\nbackend = "tensorrt_rtx"\ntargets = ["sm86", "sm89"]\nfp16 = true\n'
    recipe.write_text(finished.recipe.read_text() + tables)
    outcome = arvg("run", recipe, "--workspace", workspace, "--dry-run", "--json")
    builds = [r for r in json.loads(outcome.out)["planned"] if r["stage"] == "build"]
    (of_plan, of_half) = ("", " of the unquantized graphs")
    assert {row["folder"]: row["makes"] for row in builds} == {
        f"engines/{name}/rtx-sm86-sm89": f"tensorrt_rtx engines{graphs} for sm86, sm89"
        for name, graphs in (("int8", of_plan), ("fp16", of_half))
    }
    for row in builds:
        assert row["source"] == "estimate" and row["seconds"] > 0
        assert row["memory"] > 200_000_000  # the builder's process alone takes so much
    quantized, half = (row["disk"] for row in builds)
    assert 0 < quantized < half < 50_000_000


def test_a_workspace_in_use_is_planned_as_it_is_now(finished: Finished, workspace: Path) -> None:
    """A half-written folder of the other process stays, though it looks like what a kill left."""
    writing = workspace / "engines" / "int8" / ".onnxruntime.abc.tmp"
    writing.mkdir()
    with Workspace(workspace) as held:
        assert Workspace(workspace).worker() == os.getpid()
        before = digests(workspace)
        dry = ("run", finished.recipe, "--workspace", workspace, "--dry-run")
        for words in (dry, ("why", "build", workspace), ("predict", workspace, "--target", "t4")):
            outcome = arvg(*words)
            assert outcome.code == 0, outcome
            said = f"process {os.getpid()} works in {workspace}: this is of what is there now\n"
            assert outcome.err == (said if words[0] != "predict" else ""), outcome
        assert digests(workspace) == before and writing.is_dir()
        held.folder("engines", "int8", "onnxruntime")
        assert not writing.exists()
    assert Workspace(workspace).worker() is None
    (workspace / ".lock").write_text("1")  # as a killed process leaves it
    assert Workspace(workspace).worker() is None
    assert arvg(*dry).err == ""
