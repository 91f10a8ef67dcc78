"""Write files that appear whole or not at all; compute digests, read and write JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open

from ..errors import ArvgError, WorkspaceError
from .schemas import problem_in

CACHE_VARIABLE = "ARVG_TRT_CACHE"
OTHER_CACHE = f"set {CACHE_VARIABLE} to another folder"
# Other users can read the files, as far as the folders above permit.
FILE_MODE, FOLDER_MODE = 0o644, 0o755

T = TypeVar("T")
# Digests of this process by path, size, time of the last change and number of the file.
KNOWN: dict[tuple[str, int, int, int], str] = {}
BLOCK = 2**20  # bytes read at a time
SETTLED_NS = 100_000_000  # clocks of file systems tick every 10 ms or faster


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, hashed once per process.

    A file that changed within the last moment is hashed again: a further change might leave its
    time as it is.
    """
    with path.open("rb") as stream:
        state = os.fstat(stream.fileno())
        key = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)
        if key not in KNOWN:
            digest = digest_stream(stream)
            if time.time_ns() - state.st_mtime_ns < SETTLED_NS:
                return digest
            KNOWN[key] = digest
        return KNOWN[key]


def digest_stream(stream: IO[bytes]) -> str:
    """Return the sha256 of the rest of a stream."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def digest_files(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file by its name relative to `root`, sorted by name."""
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(paths)}


def encode_json(value: Any) -> bytes:
    """Return readable JSON with a final newline; floats as the shortest text that reads back."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


# Errors of decoding a file that does not fit its struct.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_json(
    path: Path, kind: type[T], *, do: str, error: type[ArvgError] = WorkspaceError
) -> T:
    """Read a JSON artifact, or raise an `error` that names the file, and its schema or the key."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise error("no such file", where=str(path), do=do) from None
    problem = problem_in(data, kind)
    if problem is not None:
        raise error(problem.what, where=str(path), do=problem.do or do)
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as failure:
        raise error(f"cannot be read: {said(failure)}", where=str(path), do=do) from failure


def decode_unique(data: bytes, kind: type[T]) -> T:
    """Decode JSON in which no object has a key twice: readers differ in which value they take.

    Raises:
        MsgspecError, UnicodeDecodeError, RecursionError: as `UNDECODABLE` lists them.
    """
    value = msgspec.json.decode(data, type=kind)
    # Numbers stay text: they may have more digits than Python takes.
    json.loads(data.decode(), object_pairs_hook=_require_unique, parse_int=str, parse_float=str)
    return value


def _require_unique(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise msgspec.DecodeError("an object has a key twice")


def said(failure: Exception) -> str:
    """Return the first line of what a decoder says is wrong, without what steers a terminal."""
    if isinstance(failure, RecursionError):
        return "it is nested too deeply"
    line = (str(failure).splitlines() or [type(failure).__name__])[0][:300]
    return "".join(c if c.isprintable() else "?" for c in line)


@contextlib.contextmanager
def open_tensors(path: Path, *, do: str, error: type[ArvgError] = WorkspaceError) -> Iterator[Any]:
    """Open a safetensors file that a stage wrote; if it is missing or damaged, raise `error`."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as failure:
        raise error(f"cannot be read: {said(failure)}", where=str(path), do=do) from failure


def fsync_path(path: Path) -> None:
    # Windows writes out what was opened to be written alone.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[IO[bytes]]:
    """Yield a stream to a temporary file in the same folder, which becomes `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(FILE_MODE)
        temporary.replace(path)
    except OSError as error:
        raise named(error, path, hidden=temporary) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file to a temporary name in the same folder, then rename."""
    with atomic_stream(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; on success it takes its place, else it is removed.

    The old folder is moved aside before the rename and removed after it, so at every moment one
    complete folder exists under `final` or beside it; `recover_folder` puts it back after a kill.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(final)
    temporary = None
    try:
        prefix = f".{final.name}."
        temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=final.parent))
        temporary.chmod(FOLDER_MODE)
        yield temporary
        for path in temporary.rglob("*"):
            path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
            if path.is_file():
                fsync_path(path)
        if final.exists():
            final.rename(final.with_name(f".{final.name}.old"))
        temporary.rename(final)
    except OSError as error:
        raise named(error, final, hidden=temporary) from error
    finally:
        recover_folder(final)


def named(error: OSError, path: Path, hidden: Path | None = None) -> OSError:
    """Return a failed write's error with the path and the reason that it lacks.

    A failed write may not know its file, and numpy's `tofile` not even why it failed. Files inside
    the temporary folder `hidden` are called `path` too.
    """
    if error.errno is None and str(error).endswith(" written"):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    within = hidden is not None and str(error.filename).startswith(str(hidden))
    if error.errno is None or (error.filename is not None and not within):
        return error
    return OSError(error.errno, error.strerror, str(path))


def recover_folder(final: Path) -> None:
    """Undo what a killed run left: put the last good folder back, remove unfinished siblings."""
    old = final.with_name(f".{final.name}.old")
    if old.exists():
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for leftover in final.parent.glob(f".{final.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def folder_problem(path: Path) -> tuple[str, Path] | None:
    """Return why no folder can be at `path`, and which part of it is in the way; None if it can."""
    for each in (path, *path.parents):
        if os.path.isdir(each):
            return None
        if os.path.islink(each) and not os.path.exists(each):
            return f"is a link to {os.readlink(each)}, where nothing is", each
        if os.path.lexists(each):
            return "is not a folder", each
    return None


def make_folder(path: Path, *, do: str, mode: int = 0o777) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        WorkspaceError: none can be there; advises to `do`.
    """
    if (problem := folder_problem(path)) is not None:
        raise WorkspaceError(problem[0], where=str(problem[1]), do=do)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Virtual file systems say "No such file" of a folder that cannot be made there.
        what = f"no folder can be made here: {error.strerror}"
        raise WorkspaceError(what, where=str(path), do=do) from error


def user_cache() -> Path:
    """Return the folder for what can be made again: `ARVG_TRT_CACHE`, or the system's custom.

    Raises:
        WorkspaceError: neither is set, and this user has no home.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "arvg-trt"
    except RuntimeError as error:
        user = f"the user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"
        what = f"{user} has no home to keep files in"
        raise WorkspaceError(what, do=f"set {CACHE_VARIABLE} to a folder") from error


def cache_problem() -> str | None:
    """Return why nothing can be kept in the cache, as far as paths tell; None if they do not.

    Raises:
        WorkspaceError: as `user_cache`.
    """
    problem = folder_problem(user_cache())
    return None if problem is None else f"{problem[1]}: {problem[0]}"


def own_folder(path: Path) -> Path:
    """Make a folder and the one above, which only this user may change, or check that they are.

    Windows gives a user's folders to that user alone; there nothing is checked.

    Raises:
        WorkspaceError: it cannot be made, or others may change it, so that they could change what
            is opened from it.
    """
    make_folder(path.parent.parent, do=OTHER_CACHE)
    for each in (path.parent, path):
        # With `parents` the folder above would be made as open as the user's other folders.
        make_folder(each, do=OTHER_CACHE, mode=0o700)
        if sys.platform == "win32":
            continue
        for state in (each.lstat(), each.stat()):  # a link of another user leads where he likes
            if state.st_uid not in (os.geteuid(), 0):
                problem = f"belongs to the user {state.st_uid}, not to {os.geteuid()}"
                raise WorkspaceError(problem, where=str(each), do=OTHER_CACHE)
            if stat.S_ISDIR(state.st_mode) and state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                do = f"chmod go-w {each}, or {OTHER_CACHE}"
                raise WorkspaceError("can be changed by other users", where=str(each), do=do)
    return path
