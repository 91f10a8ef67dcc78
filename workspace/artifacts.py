"""What stages leave on disk: manifests, digests, atomic folders, the workspace and its lock.

Every JSON names its schema first. Nothing that is hashed holds a time or an absolute path, so the
same inputs give the same bytes. A stage writes a temporary sibling and renames it; a killed stage
leaves the last good output.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open

from ..errors import ArvgError, WorkspaceError

WORKSPACE_VERSION = 1
MANIFEST = "manifest.json"
WORKSPACE_FILE = "workspace.json"
# Others read what was made here, as far as the folders above let them.
FILE_MODE, FOLDER_MODE = 0o644, 0o755

T = TypeVar("T")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage read, was asked, wrote and measured.

    ``inputs`` and ``outputs`` map a relative name to its sha256; ``results`` holds measurements
    and is not part of the key.
    """

    stage: str
    inputs: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str]
    outputs: dict[str, str] = {}
    results: dict[str, Any] = {}
    schema: Literal["arvg-trt/manifest/v1"] = "arvg-trt/manifest/v1"

    def key(self) -> str:
        """Digest of everything that decides the outputs."""
        body = {
            "stage": self.stage,
            "inputs": dict(sorted(self.inputs.items())),
            "options": self.options,
            "versions": dict(sorted(self.versions.items())),
        }
        return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()

    def as_inputs(self) -> dict[str, str]:
        """The outputs, named `STAGE/FILE` as the inputs of a later stage."""
        return {f"{self.stage}/{name}": digest for name, digest in self.outputs.items()}


# Digests of this process by path, size, time of the last change and number of the file.
KNOWN: dict[tuple[str, int, int, int], str] = {}
SETTLED_NS = 100_000_000  # clocks of file systems tick every 10 ms or faster


def sha256_file(path: Path) -> str:
    """Hashed once a process, unless the file changed within the last moment: a further change
    might leave its time as it is.
    """
    with path.open("rb") as stream:
        state = os.fstat(stream.fileno())
        key = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)
        if key not in KNOWN:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if time.time_ns() - state.st_mtime_ns < SETTLED_NS:
                return digest
            KNOWN[key] = digest
        return KNOWN[key]


def digest_files(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Relative name to sha256, sorted by name."""
    return {str(p.relative_to(root)): sha256_file(p) for p in sorted(paths)}


def encode_json(value: Any) -> bytes:
    """Readable JSON with a final newline; floats as the shortest text that reads back the same."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


# What decoding a file raises where it does not hold what its struct says.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_json(
    path: Path, kind: type[T], *, do: str, error: type[ArvgError] = WorkspaceError
) -> T:
    """Read a JSON artifact, or raise an `error` that names the file and the key."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise error("no such file", where=str(path), do=do) from None
    except UNDECODABLE as failure:
        raise error(f"cannot be read: {said(failure)}", where=str(path), do=do) from failure


def said(failure: Exception) -> str:
    """The first line of what a decoder says is wrong."""
    if isinstance(failure, RecursionError):
        return "it is nested too deeply"
    return (str(failure).splitlines() or [type(failure).__name__])[0][:300]


@contextlib.contextmanager
def open_tensors(path: Path, *, do: str, error: type[ArvgError] = WorkspaceError) -> Iterator[Any]:
    """A safetensors file that a stage wrote; what is not there or damaged in it is an `error`."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as failure:
        raise error(f"cannot be read: {said(failure)}", where=str(path), do=do) from failure


def fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name in the same folder, which becomes `path` at the end."""
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
        raise named(error, path) from error
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
    """A failed write does not know its file, and numpy's `tofile` not even why it failed.

    Files inside the temporary folder `hidden` are called `path` too.
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


class Workspace:
    """A folder of stage outputs that one process at a time may change.

    Use as a context manager: entering takes the lock and checks the version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Workspace:
        if self.root.exists() and not self.root.is_dir():
            raise WorkspaceError("is not a folder", where=str(self.root), do="name a folder")
        self._made = not self.root.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / ".lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise WorkspaceError(
                "another run is using this workspace",
                where=str(self.root),
                do="wait for it to end, or name another workspace",
            ) from None
        except FileNotFoundError as error:
            # What virtual file systems say of a folder that nobody can make there.
            raise WorkspaceError(
                f"no folder can be made here: {error.strerror}",
                where=str(self.root),
                do="name a workspace on a disk",
            ) from error
        with contextlib.ExitStack() as undo:
            undo.push(self)
            self.check_version()
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None and self._made:
            self.remove_if_empty()
        self._lock.close()

    def remove_if_empty(self) -> None:
        """Leave no new workspace behind a first stage that failed."""
        for path in self.root.iterdir():
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if {path.name for path in self.root.iterdir()} <= {".lock", WORKSPACE_FILE}:
            shutil.rmtree(self.root)

    def check_version(self) -> None:
        path = self.root / WORKSPACE_FILE
        if not path.exists():
            atomic_write(
                path, encode_json({"schema": "arvg-trt/workspace", "version": WORKSPACE_VERSION})
            )
            return
        found = decode_json(path, dict[str, Any], do="remove the file to start over").get("version")
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise WorkspaceError(
                f"says version {str(found)[:40]!r}, which is no version of a workspace",
                where=str(path),
                do=f"write {WORKSPACE_VERSION}, or remove the file to start over",
            )
        if found > WORKSPACE_VERSION:
            raise WorkspaceError(
                f"workspace version {found} is newer than this tool's {WORKSPACE_VERSION}",
                where=str(path),
                do="update arvg-trt, or use another workspace",
            )

    def folder(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        recover_folder(path)
        return path

    def manifest(self, *parts: str, stage: str) -> Manifest:
        """The manifest of an earlier stage, or an error that says which command makes it."""
        path = self.folder(*parts) / MANIFEST
        return decode_json(path, Manifest, do=f"run `arvg-trt {stage}` first")


def is_up_to_date(folder: Path, wanted: Manifest) -> bool:
    """Whether `folder` holds what `wanted` would make: same key, every output with its digest."""
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, *UNDECODABLE):
        return False
    return found.key() == wanted.key() and all(
        (folder / name).is_file() and sha256_file(folder / name) == digest
        for name, digest in found.outputs.items()
    )


def write_manifest(folder: Path, manifest: Manifest, results: Mapping[str, Any]) -> Manifest:
    """Digest every file of `folder` into the manifest and write it there."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
    done = msgspec.structs.replace(
        manifest, outputs=digest_files(folder, files), results=dict(results)
    )
    atomic_write(folder / MANIFEST, encode_json(done))
    return done
