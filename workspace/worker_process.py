"""Run work in a subprocess, whose memory is free when it ends.

`run_isolated` runs a module of this package, which hands its work to `serve_worker`.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import ArvgError, OutOfMemory
from .child_python import module_command
from .files import atomic_write
from .peak_memory import add_child, resident_peak

T = TypeVar("T")
REQUEST, RESULT, PROGRESS = "request.json", "result.json", "progress.json"
POLL_SECONDS = 0.5
KINDS: dict[str, type[ArvgError]] = {kind.__name__: kind for kind in ArvgError.__subclasses__()}
KINDS[ArvgError.__name__] = ArvgError
PR_SET_PDEATHSIG = 1
# Words by which torch reports it, in a plain RuntimeError.
MEMORY_SIGN = "can't allocate memory"


class Problem(msgspec.Struct, frozen=True):
    """Carry an `ArvgError`, or an `OSError` with its number, to the calling process."""

    kind: str
    what: str
    where: str | None
    do: str | None = None
    number: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """Hold what the work returned, or why it could not be done; `memory` is its peak, in bytes."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    problem: Problem | None = None
    memory: int | None = None


class WorkerCrash(RuntimeError):
    """Report a worker that a signal ended, as one does whose library crashes; `sign` names it."""

    def __init__(self, module: str, sign: str) -> None:
        super().__init__(f"{module} was ended by {sign}")
        self.sign = sign


class WorkerOutput(Exception):
    """Hold what a worker printed before it failed, so that a traceback shows it."""


def run_isolated(
    module: str,
    request: Any,
    result: type[T],
    progress: Callable[[str, int, int], None] | None = None,
) -> T:
    """Run a module of this package with the request, and return its result.

    `progress` gets what the work says of itself by `tell_progress`.

    Raises:
        ArvgError: what the work raised.
        OSError: what the work could not read or write.
        OutOfMemory: the system ended the process, as it does for memory.
        WorkerCrash: a signal ended it.
        RuntimeError: a bug; what the process printed, its traceback too, is the cause.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / REQUEST).write_bytes(msgspec.json.encode(request))
        command = module_command(module, folder)
        code, printed = watched(command, Path(folder) / PROGRESS, progress)
        if sys.platform != "win32" and code == -signal.SIGKILL:
            raise OutOfMemory(
                "a subprocess was killed, as the system does when memory runs out",
                where=module,
                do="free memory, or use a larger machine",
            )
        if code < 0:
            raise WorkerCrash(module, signal_name(-code)) from WorkerOutput(printed)
        if code:
            lines = printed.strip().splitlines() or ["it said nothing"]
            what = f"{module} ended with {code}: {lines[-1][:200]}"
            raise RuntimeError(what) from WorkerOutput(printed)
        sys.stderr.write(printed)
        return result_of(Path(folder), result)


def watched(
    command: list[str], file: Path, progress: Callable[[str, int, int], None] | None
) -> tuple[int, str]:
    """Run a command to its end; return its exit code, and what it printed on stderr."""
    poll = None if progress is None else POLL_SECONDS
    told = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            while True:
                try:
                    _, printed = process.communicate(timeout=poll)
                    return process.returncode, printed
                except subprocess.TimeoutExpired:
                    now = file.read_bytes() if file.is_file() else told
                    if progress is not None and now != told:
                        progress(*msgspec.json.decode(now, type=tuple[str, int, int]))
                        told = now
        except BaseException:  # interrupted, too
            process.kill()
            raise


def tell_progress(task: str, done: int, total: int) -> None:
    """Tell the process that asked for the work how far it is, whenever that looks."""
    atomic_write(Path(sys.argv[1]) / PROGRESS, msgspec.json.encode((task, done, total)))


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGSEGV; those for real time have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def result_of(folder: Path, result: type[T]) -> T:
    """Return what the work in `folder` gave; raises the error that it ended with."""
    answer = msgspec.json.decode((folder / RESULT).read_bytes(), type=Answer)
    if answer.problem is not None:
        problem = answer.problem
        if problem.number is not None:
            raise OSError(problem.number, problem.what, problem.where)
        raise KINDS[problem.kind](problem.what, where=problem.where, do=problem.do)
    add_child(answer.memory)
    return msgspec.json.decode(answer.value, type=result)


def serve_worker(request: type[T], work: Callable[[T], Any]) -> None:
    """Answer one request as all that a process does, quietly if it is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process says what was interrupted
    end_with_parent()
    answer(request, work)


def answer(request: type[T], work: Callable[[T], Any]) -> None:
    """Do the work on the request in the folder that the command line names."""
    folder = Path(sys.argv[1])
    try:
        with resident_peak() as peak:
            value = work(msgspec.json.decode((folder / REQUEST).read_bytes(), type=request))
        encoded = msgspec.Raw(msgspec.json.encode(value))
        answered = Answer(value=encoded, memory=peak.bytes)
    except ArvgError as error:
        kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS)
        answered = Answer(problem=Problem(kind, error.what, error.where, error.do))
    except OSError as error:
        if error.errno is None:
            raise
        place = None if error.filename is None else str(error.filename)
        answered = Answer(
            problem=Problem("OSError", str(error.strerror), place, number=error.errno)
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and MEMORY_SIGN not in str(error):
            raise
        do = "free memory, or use a larger machine"
        answered = Answer(problem=Problem("OutOfMemory", "out of memory", None, do))
    (folder / RESULT).write_bytes(msgspec.json.encode(answered))


def end_with_parent() -> None:
    """Have Linux end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
