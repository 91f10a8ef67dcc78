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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import msgspec

from .errors import WorkspaceError

WORKSPACE_VERSION = 1
MANIFEST = "manifest.json"
WORKSPACE_FILE = "workspace.json"

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


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Relative name to sha256, sorted by name."""
    return {str(p.relative_to(root)): sha256_file(p) for p in sorted(paths)}


def encode_json(value: Any) -> bytes:
    """Readable JSON with a final newline; floats as the shortest text that reads back the same."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_json(path: Path, kind: type[T], *, do: str) -> T:
    """Read a JSON artifact, or raise an error that names the file and the key."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise WorkspaceError("no such file", where=str(path), do=do) from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WorkspaceError(f"cannot be read: {error}", where=str(path), do=do) from error


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
        temporary.chmod(0o644)
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
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.rglob("*"):
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
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise WorkspaceError(
                "another run is using this workspace",
                where=str(self.root),
                do="wait for it to end, or name another workspace",
            ) from None
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
    except (FileNotFoundError, msgspec.ValidationError, msgspec.DecodeError):
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
