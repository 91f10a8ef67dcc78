"""One process at a time works in a folder, and its end frees it; also where there is no `flock`."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.workspace import locks
from arvg_trt.workspace.workspace import Workspace

BESIDE = ("tests", "benchmarks", "training", "out", ".venv")
HOLD = """
import sys, time
from pathlib import Path
from arvg_trt.workspace.workspace import Workspace
with Workspace(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_by_the_number_of_the_first_until_that_is_killed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
            with pytest.raises(WorkspaceError) as caught, Workspace(tmp_path):
                raise AssertionError("both hold the lock")
        finally:
            holder.send_signal(signal.SIGKILL)
    assert caught.value.what == f"another run is using this workspace, process {holder.pid}"
    with Workspace(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert (tmp_path / ".lock").read_text() == ""


def windows_locks() -> Any:
    """The module as Windows loads it, above byte ranges of POSIX in place of the C library's."""

    def locking(descriptor: int, mode: int, length: int) -> None:
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            fcntl.lockf(descriptor, mode, length, at)
        except BlockingIOError as error:  # by the number that the C library of Windows has for it
            raise PermissionError(errno.EACCES, "Permission denied") from error

    module = types.ModuleType("windows_locks")
    library = types.SimpleNamespace(LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB, locking=locking)
    system = types.SimpleNamespace(platform="win32")
    source = Path(locks.__file__).read_text()
    body = source.replace("import msvcrt\n", "pass\n").replace("import sys\n", "")
    assert body != source
    vars(module).update(msvcrt=library, sys=system)
    exec(compile(body, locks.__file__, "exec"), vars(module))
    return module


def in_child(work: Callable[[IO[str]], bool], path: Path) -> bool:
    """Do some work on an open file in a process of its own: byte ranges are a process's."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            with path.open("a+") as stream:
                code = 0 if work(stream) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return code == 0


def test_the_lock_of_windows_is_taken_once_and_leaves_the_holder_s_number_readable(
    tmp_path: Path,
) -> None:
    module, path, own = windows_locks(), tmp_path / ".lock", os.getpid()
    with path.open("a+") as stream:
        assert module.try_lock(stream)
        module.name_holder(stream)
        assert not in_child(module.try_lock, path)
        assert in_child(lambda other: module.holder_of(other) == own, path)
    assert in_child(module.try_lock, path)
    assert path.stat().st_size < 20


def test_an_error_other_than_a_holder_is_not_taken_for_one(tmp_path: Path) -> None:
    module = windows_locks()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    module.msvcrt.locking = fail
    with (tmp_path / ".lock").open("a+") as stream, pytest.raises(OSError, match="Input/output"):
        module.try_lock(stream)


def test_a_file_without_a_number_names_no_holder(tmp_path: Path) -> None:
    for text in ("", "x", "-1", "1" * 30 + "x", "\u0661"):
        (tmp_path / "lock").write_text(text, encoding="utf-8")
        with (tmp_path / "lock").open("a+", encoding="utf-8") as stream:
            assert locks.holder_of(stream) in (None, int("1" * 20))


WITHOUT_POSIX = """
import importlib, pathlib, pkgutil, sys
for name in ("resource", "pwd", "grp", "termios", "pty", "syslog"):
    sys.modules[name] = None
import arvg_trt, arvg_trt.cli
from arvg_trt import runtime, workspace, recipe
for package in (runtime, workspace, recipe):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
print(len([name for name in sys.modules if name.startswith("arvg_trt.runtime")]))
"""


def test_one_module_alone_locks_by_what_posix_has() -> None:
    root = Path(locks.__file__).parents[1]
    code = (p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in BESIDE)
    found = {path.name for path in code if re.search(r"^\s*import fcntl$", path.read_text(), re.M)}
    assert found == {"locks.py"}


def test_what_devices_load_needs_no_other_module_of_posix() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
