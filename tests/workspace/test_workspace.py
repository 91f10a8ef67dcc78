"""Atomic files and folders, manifests, the workspace's lock and version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import BuildError, WorkspaceError
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.workspace.files import (
    atomic_folder,
    atomic_write,
    decode_json,
    encode_json,
    recover_folder,
    sha256_file,
)
from arvg_trt.workspace.manifest import MANIFEST, Manifest, is_up_to_date, write_manifest
from arvg_trt.workspace.stage import run_stage
from arvg_trt.workspace.workspace import WORKSPACE_FILE, WORKSPACE_VERSION, Workspace

from ..command_line import arvg, assert_refused, leftovers

WANTED = Manifest(
    stage="quantize", inputs={"a": "1", "b": "2"}, options={"bits": 8}, versions={"tool": "1"}
)


def changed(**changes: Any) -> Manifest:
    return Manifest(
        **{"stage": "quantize", "inputs": {"a": "1", "b": "2"}, "options": {"bits": 8}}
        | {"versions": {"tool": "1"}}
        | changes
    )


class Stop(Exception):
    pass


def written(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "graph.onnx").write_text(text)
    return path


def test_folder_takes_its_place_only_when_the_work_is_done(tmp_path: Path) -> None:
    final = tmp_path / "stage"
    with atomic_folder(final) as temporary:
        (temporary / "graph.onnx").write_text("new")
        assert temporary.parent == final.parent
        assert not final.exists()
    assert (final / "graph.onnx").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]
    assert final.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt, SystemExit])
def test_folder_whose_work_fails_keeps_the_old_one(
    problem: type[BaseException], tmp_path: Path
) -> None:
    final = written(tmp_path / "stage", "old")
    with pytest.raises(problem), atomic_folder(final) as temporary:
        (temporary / "graph.onnx").write_text("half")
        raise problem
    assert (final / "graph.onnx").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_folder_that_cannot_be_renamed_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = written(tmp_path / "stage", "old")
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with pytest.raises(OSError, match="No space left"), atomic_folder(final) as temporary:
        (temporary / "graph.onnx").write_text("new")
        monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    assert (final / "graph.onnx").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_short_write_of_an_array_is_told_as_a_full_disk(tmp_path: Path) -> None:
    final = tmp_path / "stage"
    with pytest.raises(OSError) as caught, atomic_folder(final):
        raise OSError("1000 requested and 17 written")
    assert caught.value.errno == 28
    assert caught.value.filename == str(final)


def test_recovery_of_another_folder_leaves_a_similar_name_alone(tmp_path: Path) -> None:
    for name in (".export.old", ".export2.old", ".export.abc.tmp", ".export2.abc.tmp"):
        written(tmp_path / name, name)
    recover_folder(tmp_path / "export")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"export", ".export2.old", ".export2.abc.tmp"}
    assert (tmp_path / "export" / "graph.onnx").read_text() == ".export.old"


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=2), st.randoms())
def test_key_does_not_depend_on_the_order_of_inputs(inputs: dict[str, str], random: Any) -> None:
    items = list(inputs.items())
    random.shuffle(items)
    assert changed(inputs=dict(items)).key() == changed(inputs=inputs).key()


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "build"},
        {"inputs": {"a": "1", "b": "3"}},
        {"inputs": {"a": "1"}},
        {"options": {"bits": 4}},
        {"versions": {"tool": "2"}},
    ],
)
def test_key_changes_with_everything_that_decides_the_outputs(change: dict[str, Any]) -> None:
    assert changed(**change).key() != WANTED.key()


def test_key_does_not_change_with_what_was_measured() -> None:
    assert changed(outputs={"x": "1"}, results={"seconds": 3.0}).key() == WANTED.key()


def test_folder_is_up_to_date_only_with_the_same_key_and_untouched_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "stage", "graph")
    assert not is_up_to_date(folder, WANTED)
    done = write_manifest(folder, WANTED, {"seconds": 1.0})
    assert done.outputs == {"graph.onnx": sha256_file(folder / "graph.onnx")}
    assert is_up_to_date(folder, WANTED)
    assert not is_up_to_date(folder, changed(options={"bits": 4}))

    (folder / "graph.onnx").write_text("other")
    assert not is_up_to_date(folder, WANTED)
    (folder / "graph.onnx").write_text("graph")
    assert is_up_to_date(folder, WANTED)
    (folder / "graph.onnx").unlink()
    assert not is_up_to_date(folder, WANTED)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": "arvg-trt/manifest/v9"}'])
def test_folder_with_a_damaged_manifest_is_not_up_to_date(content: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "stage", "graph")
    (folder / MANIFEST).write_text(content)
    assert not is_up_to_date(folder, WANTED)


def test_manifest_holds_files_of_subfolders_and_no_path_outside(tmp_path: Path) -> None:
    folder = written(tmp_path / "stage", "graph")
    written(folder / "samples", "sample")
    done = write_manifest(folder, WANTED, {})
    assert list(done.outputs) == ["graph.onnx", "samples/graph.onnx"]
    assert str(tmp_path) not in (folder / MANIFEST).read_text()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_in_json_reads_back_the_same(value: float) -> None:
    assert json.loads(encode_json({"value": value}))["value"] == value


def test_plan_reads_back_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan(
        sites=(
            SitePlan(
                name="encoder.conv",
                weight=WeightFormat(bits=8),
                activation=ActivationFormat(bits=8, scale=0.1, shift=-128),
                smoothing=0.5,
            ),
            SitePlan(name="decoder.conv", reason="first or last convolution"),
        )
    )
    path = tmp_path / "plan.json"
    path.write_bytes(encode_json(plan))
    assert decode_json(path, Plan, do="") == plan
    assert json.loads(path.read_text())["schema"] == "arvg-trt/plan/v1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("no such file",)),
        ("{", ("cannot be read",)),
        ('{"sites": [], "extra": 1}', ("extra",)),
        ('{"sites": [{"name": "a", "weight": {"bits": 1}}]}', ("$.sites[0].weight", "2 to 8")),
        ('{"sites": [{"name": "a", "weight": {"bits": 4, "grid": "fp8"}}]}', ("FP8",)),
        ('{"sites": [{"name": "a", "activation": {"bits": 8, "scale": 0}}]}', ("positive",)),
        (
            '{"sites": [{"name": "a", "activation": {"bits": 8, "grid": "fp8", "shift": 1}}]}',
            ("no shift",),
        ),
        ('{"sites": [{"name": 3}]}', ("$.sites[0].name",)),
    ],
)
def test_json_that_is_no_plan_is_refused_by_file_and_key(
    content: str | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WorkspaceError) as caught:
        decode_json(path, Plan, do="do this")
    for word in ("plan.json", "do this", *words):
        assert word in str(caught.value)


def test_lock_is_held_against_another_process_and_freed_by_its_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from arvg_trt.workspace.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(WorkspaceError, match="another run"), Workspace(tmp_path):
        pass
    other.kill()
    other.communicate()
    with Workspace(tmp_path) as workspace:
        assert workspace.root == tmp_path


def test_workspace_says_its_version_and_takes_an_older_or_equal_one(tmp_path: Path) -> None:
    for _ in range(2):
        with Workspace(tmp_path):
            found = json.loads((tmp_path / WORKSPACE_FILE).read_text())
            assert found == {"schema": "arvg-trt/workspace", "version": WORKSPACE_VERSION}


def test_refused_version_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / WORKSPACE_FILE
    path.write_text(json.dumps({"version": WORKSPACE_VERSION + 1}))
    with pytest.raises(WorkspaceError, match="newer"), Workspace(tmp_path):
        pass
    path.unlink()
    with Workspace(tmp_path):
        assert path.exists()


def test_new_workspace_of_a_failed_stage_is_removed_and_an_old_one_is_not(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for root in (old, new):
        with pytest.raises(Stop), Workspace(root):
            raise Stop
    assert old.exists()
    assert not new.exists()


def test_new_workspace_with_a_finished_stage_outlives_a_later_error(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(Stop), Workspace(root) as workspace:
        with atomic_folder(workspace.folder("export")) as temporary:
            (temporary / "encoder.onnx").write_text("graph")
        raise Stop
    assert sorted(os.listdir(root)) == [".lock", "export", WORKSPACE_FILE]
    assert not leftovers(root)


def test_missing_stage_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with Workspace(tmp_path):
        pass
    with (
        Workspace(tmp_path) as workspace,
        pytest.raises(WorkspaceError, match=r"run `arvg-trt calibrate` first"),
    ):
        workspace.manifest("calibrate", stage="calibrate")


def test_missing_quantization_names_those_that_are_there(tmp_path: Path) -> None:
    for name in ("w8a8", "w4", ".new"):
        folder = tmp_path / "quantize" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    with pytest.raises(WorkspaceError, match=r"--name w4 or w8a8\)$"):
        Workspace(tmp_path).manifest("quantize", "int8", stage="quantize")


def test_a_stage_that_fails_names_no_file_of_its_temporary_folder(tmp_path: Path) -> None:
    def work(folder: Path) -> msgspec.Struct:
        raise BuildError(f"{folder}/a.onnx is wrong", where=str(folder / "b.onnx"), do="mend it")

    wanted = Manifest(stage="build", inputs={}, options={}, versions={})
    with pytest.raises(BuildError) as caught:
        run_stage(tmp_path / "engine", wanted, work)
    assert str(caught.value) == "b.onnx: a.onnx is wrong (mend it)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        *(
            ("build", "--backend", "onnxruntime"),
            ("diagnose",),
            ("diagnose", "build-failure", "-o", "p"),
        ),
        *(("validate",), ("quantize",), ("calibrate",), ("search", "--budget", "avg_bits<=5")),
        *(("predict", "--target", "rtx4090"), ("why", "quantize"), ("bundle", "-o", "b")),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_workspace_is_called_so_and_stays(
    command: tuple[str, ...], there: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    if there:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    assert_refused(arvg(*command, folder), 9, "is no workspace", str(folder), "arvg-trt export")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"] * there


class Results(msgspec.Struct):
    """No results."""


def test_a_workspace_that_lost_its_file_is_one(tmp_path: Path) -> None:
    run_stage(tmp_path / "quantize" / "int8", WANTED, lambda folder: Results())
    with Workspace(tmp_path) as workspace:
        assert workspace.manifest("quantize", "int8", stage="quantize").stage == "quantize"
        with pytest.raises(WorkspaceError, match=r"manifest\.json"):
            workspace.manifest("export", stage="export")
