"""Killed, interrupted, or out of disk in any stage: the last good output stays, a rerun ends it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from functools import partial
from pathlib import Path

import pytest

from ..command_line import (
    MODEL,
    Finished,
    Outcome,
    arvg,
    assert_refused,
    digests,
    leftovers,
    send_in_the_middle,
    start,
    wait_for,
)

FOLDERS = {
    "export": Path("export"),
    "calibrate": Path("calibrate"),
    "quantize": Path("quantize/int8"),
    "build": Path("engines/int8/onnxruntime"),
    "validate": Path("validate/int8"),
}


def changed_stage(stage: str, workspace: Path, finished: Finished) -> tuple[object, ...]:
    """Arguments with which `stage` has work to do in a finished workspace."""
    size = ("--size", 64)
    match stage:
        case "export":
            return stage, MODEL, workspace, "--images", finished.calibration
        case "calibrate":
            images = ("--images", finished.calibration)
            return stage, workspace, *images, *size, "--samples", 3
        case "quantize":
            return stage, workspace, "--smoothing", 0.4
        case "build":
            assert arvg("quantize", workspace, "--smoothing", 0.4).code == 0
            return stage, workspace
        case _:
            images = ("--images", finished.validation, "--rounds", 0)
            return stage, workspace, *images, *size


def assert_interrupted(outcome: Outcome) -> None:
    # Where a library has its own handler the process dies of the signal itself: 130 to a shell.
    assert outcome.code in (130, -signal.SIGINT)
    assert outcome.err == "error: interrupted (finished stages are kept, run again)\n"
    assert outcome.out == ""


@pytest.mark.parametrize("stage", FOLDERS)
def test_interrupted_or_killed_stage_keeps_the_last_output(
    stage: str, workspace: Path, finished: Finished
) -> None:
    folder = workspace / FOLDERS[stage]
    args = changed_stage(stage, workspace, finished)
    before = digests(folder)

    assert_interrupted(send_in_the_middle(signal.SIGINT, folder, args))
    assert digests(folder) == before
    assert not leftovers(workspace)

    outcome = send_in_the_middle(signal.SIGKILL, folder, args)
    assert outcome.code == -signal.SIGKILL
    assert digests(folder) == before
    assert leftovers(workspace)

    if stage == "export":  # `finished` completes a killed one; here the last output is still good
        args = (stage, MODEL, workspace)
    else:
        outcome = arvg(*args)
        assert outcome.code == 0, outcome.err
        assert "up to date" not in outcome.out
        assert digests(folder) != before
    assert arvg(*args).out.splitlines()[0] == f"{stage}: up to date, {folder}"
    assert not leftovers(workspace)


def test_first_export_killed_is_completed_by_the_next_run(finished: Finished) -> None:
    assert finished.killed.code == -signal.SIGKILL
    assert finished.left_by_kill
    assert finished.outcome.code == 0
    assert not leftovers(finished.workspace)


def test_kill_between_the_two_renames_loses_nothing(workspace: Path, finished: Finished) -> None:
    for folder in FOLDERS.values():
        path = workspace / folder
        path.rename(path.with_name(f".{path.name}.old"))
    outcome = arvg("run", finished.recipe, "--workspace", workspace)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("up to date") == len(FOLDERS)
    assert not leftovers(workspace)


def test_kill_after_the_second_rename_leaves_the_new_output(
    workspace: Path, finished: Finished
) -> None:
    folder = workspace / "calibrate"
    old = workspace / ".calibrate.old"
    old.mkdir()
    (old / "statistics.safetensors").write_text("the output before")
    before = digests(folder)
    assert arvg("quantize", workspace).code == 0
    assert digests(folder) == before
    assert not leftovers(workspace)


def test_killed_run_goes_on_where_it_stopped(workspace: Path, finished: Finished) -> None:
    recipe = finished.recipe.read_text() + "\n[quantize]\nsmoothing = 0.3\n"
    changed = workspace.parent / "changed.toml"
    changed.write_text(recipe)
    args = ("run", changed, "--workspace", workspace)
    send_in_the_middle(signal.SIGKILL, workspace / FOLDERS["build"], args)
    outcome = arvg(*args)
    assert outcome.code == 0, outcome.err
    done = [line.split()[0] for line in outcome.out.splitlines() if "up to date" in line]
    assert done == ["export", "calibrate", "quantize"]
    assert not leftovers(workspace)


def run_with_small_files(size: int, *args: object) -> Outcome:
    """Run a command whose files cannot grow above so many bytes; coverage's could not either."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    uncovered = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return wait_for(start(*args, preexec_fn=limit, env=uncovered))


@pytest.mark.parametrize(
    ("stage", "size"),
    [
        pytest.param("export", 50_000, id="export-graph"),
        pytest.param("calibrate", 2_000, id="calibrate-sample"),
        pytest.param("calibrate", 100_000, id="calibrate-statistics"),
        pytest.param("quantize", 5_000, id="quantize-graph"),
        pytest.param("quantize", 2_500_000, id="quantize-weights"),
        pytest.param("build", 80_000, id="build-graph"),
        pytest.param("build", 300_000, id="build-weights"),
        pytest.param("validate", 10_000, id="validate-report"),
    ],
)
def test_file_that_cannot_grow_ends_the_stage_and_keeps_the_last_output(
    stage: str, size: int, workspace: Path, finished: Finished
) -> None:
    args = changed_stage(stage, workspace, finished)
    before = digests(workspace)
    outcome = run_with_small_files(size, *args)
    assert_refused(outcome, 9, str(workspace / FOLDERS[stage]), "disk full")
    assert digests(workspace) == before
    assert not leftovers(workspace)


@pytest.mark.parametrize(
    ("stage", "call"), [("calibrate", 2), ("quantize", 1), ("build", 3), ("validate", 1)]
)
def test_full_disk_ends_the_stage_and_keeps_the_last_output(
    stage: str,
    call: int,
    workspace: Path,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = changed_stage(stage, workspace, finished)
    before = digests(workspace)
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert_refused(arvg(*args), 9, str(workspace / FOLDERS[stage]), "disk full", "No space left")
    assert digests(workspace) == before
    assert not leftovers(workspace)


def test_full_disk_of_a_new_workspace_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert_refused(arvg("export", MODEL, tmp_path / "ws"), 9, "disk full")
    assert not (tmp_path / "ws").exists()


def test_full_disk_while_encoding_leaves_no_file(finished: Finished, tmp_path: Path) -> None:
    image = finished.validation / "astronaut.png"
    args = ("encode", finished.workspace / "export", image, "-o", tmp_path / "t.npz")
    outcome = run_with_small_files(100, *args)
    assert_refused(outcome, 9, "t.npz", "disk full")
    assert not list(tmp_path.iterdir())
