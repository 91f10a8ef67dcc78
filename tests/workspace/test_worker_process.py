from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from arvg_trt.errors import ArvgError, ExportError, OutOfMemory
from arvg_trt.export.shape import DYNAMIC
from arvg_trt.families.shared.isolated_export import ModelTask
from arvg_trt.runtime.images import UnreadableImage
from arvg_trt.workspace.worker_process import WorkerCrash, answer, run_isolated

MODULE = "arvg_trt.families.shared.isolated_export"


def comparison(checkpoint: Path) -> ModelTask:
    return ModelTask(
        what="compare",
        model="var",
        spec="the checkpoint",
        paths=(str(checkpoint),),
        images=(),
        folder=".",
        form=DYNAMIC,
    )


def executable(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_an_error_of_the_second_process_is_the_first_ones(tmp_path: Path) -> None:
    missing = tmp_path / "var_d16.pth"
    with pytest.raises(ExportError) as caught:
        run_isolated(MODULE, comparison(missing), dict)
    error = caught.value
    assert (error.what, error.where, error.do) == (
        "no such file",
        str(missing),
        "check --checkpoint",
    )


def test_a_killed_process_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", "kill -9 $$"))
    with pytest.raises(OutOfMemory, match=r"was killed, as the system does when memory runs out"):
        run_isolated(MODULE, comparison(tmp_path), dict)


def test_a_process_that_a_signal_ends_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", "kill -SEGV $$"))
    with pytest.raises(WorkerCrash, match="isolated_export was ended by SIGSEGV") as caught:
        run_isolated(MODULE, comparison(tmp_path), dict)
    assert caught.value.sign == "SIGSEGV"


def test_a_bug_of_the_second_process_is_no_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", "exit 1"))
    with pytest.raises(RuntimeError, match="isolated_export ended with 1") as caught:
        run_isolated(MODULE, comparison(tmp_path), dict)
    assert not isinstance(caught.value, ArvgError)


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "request.json").write_text("[2, 3]")
    monkeypatch.setattr(sys, "argv", ["module", str(folder)])


def test_the_result_is_what_the_work_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(tmp_path, monkeypatch)
    answer(list[int], sum)
    assert '{"value":5,"problem":null,' in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (UnreadableImage("a.png", "no picture"), "CalibrationError", "null"),
        (ArvgError("torch is not installed"), "ArvgError", "null"),
        (OSError(errno.ENOSPC, "No space left on device", "x.onnx"), "OSError", "28"),
    ],
)
def test_errors_of_any_kind_come_over_as_what_they_are(
    error: Exception, kind: str, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: list[int]) -> None:
        raise error

    ask(tmp_path, monkeypatch)
    answer(list[int], fail)
    text = (tmp_path / "result.json").read_text()
    assert f'"kind":"{kind}"' in text and f'"number":{number}' in text


def test_traceback_of_a_bug_is_kept_for_debug_and_off_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "echo Traceback of many lines >&2; echo KeyError: surprise >&2; exit 1"
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", body))
    with pytest.raises(RuntimeError, match="ended with 1: KeyError: surprise") as caught:
        run_isolated(MODULE, comparison(tmp_path), dict)
    assert "Traceback of many lines" in str(caught.value.__cause__)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bytes_each", [1, 8])
def test_memory_that_torch_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_each: int
) -> None:
    ask(tmp_path, monkeypatch)
    kind = {1: torch.uint8, 8: torch.float64}[bytes_each]
    answer(list[int], lambda _: torch.empty(2**50, dtype=kind))
    assert '"kind":"OutOfMemory","what":"out of memory"' in (tmp_path / "result.json").read_text()


def test_other_errors_of_torch_are_bugs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="size"):
        answer(list[int], lambda _: torch.zeros(2) + torch.zeros(3))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of a parent's end")
def test_it_does_not_outlive_the_first_process() -> None:
    child = (
        "import os, time; from arvg_trt.workspace.worker_process import end_with_parent; "
        "end_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        second = Path(f"/proc/{int(first.stdout.readline())}/stat")
        first.kill()
        first.wait()
        end = time.monotonic() + 10
        while second.exists() and second.read_text().split()[2] != "Z":
            assert time.monotonic() < end
            time.sleep(0.05)
