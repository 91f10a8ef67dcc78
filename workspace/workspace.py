"""Define the workspace: a folder of stage outputs, and a lock that one process at a time holds."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from .files import atomic_write, decode_json, encode_json, make_folder, recover_folder
from .locks import holder_of, name_holder, try_lock
from .manifest import MANIFEST, Manifest

WORKSPACE_VERSION = 1
WORKSPACE_FILE = "workspace.json"
OTHER_WORKSPACE = "name another folder as workspace"
RECIPE_FILE = "run.toml"  # the recipe of the last `run`, without folders of the machine


def require_workspace(root: Path) -> None:
    """Raise WorkspaceError for a folder that no stage has written to."""
    if not (root / WORKSPACE_FILE).is_file() and not has_outputs(root):
        raise no_workspace(root)


def no_workspace(root: Path) -> WorkspaceError:
    """Return the error of a folder that commands cannot read as a workspace."""
    return WorkspaceError(
        "is no workspace" if root.exists() else "is no workspace: there is no such folder",
        where=str(root),
        do="name the folder that stages write to; `arvg-trt export` makes one",
    )


def has_outputs(root: Path) -> bool:
    """Return whether a stage has written to a folder, whatever else is there."""
    return any(
        next(root.glob(f"{place}/{MANIFEST}"), None)
        for place in ("export", "calibrate", "quantize/*", "engines/*/*", "validate/*")
    )


class Workspace:
    """Give access to a folder of stage outputs that one process at a time may change.

    Use as a context manager to change it: entering takes the lock and checks the version. What only
    reads need not enter, and then changes nothing, whoever works there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entered = False
        self._new = False

    def __enter__(self) -> Workspace:
        self._made = not self.root.exists()
        make_folder(self.root, do=OTHER_WORKSPACE)
        self._lock = (self.root / ".lock").open("a+")
        self._take_lock()
        self._entered = True
        self._new = not (self.root / WORKSPACE_FILE).exists()
        with contextlib.ExitStack() as undo:
            undo.push(self)
            self.check_version()
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._entered = False
        self._lock.truncate(0)
        if sys.platform == "win32":  # where what is open cannot be removed
            self._lock.close()
        if kind is not None and self._made:
            self.remove_if_empty()
        elif kind is not None and self._new and not has_outputs(self.root):
            # Else a folder of the user's own seems to be a workspace from now on.
            (self.root / WORKSPACE_FILE).unlink(missing_ok=True)
            (self.root / ".lock").unlink(missing_ok=True)
        self._lock.close()

    def _take_lock(self) -> None:
        """Raise WorkspaceError where another process has the lock."""
        if try_lock(self._lock):
            name_holder(self._lock)
            return
        with self._lock:
            holder = holder_of(self._lock)
        named = "" if holder is None else f", process {holder}"
        raise WorkspaceError(
            f"another run is using this workspace{named}",
            where=str(self.root),
            do="wait for it to end, or name another workspace",
        )

    def worker(self) -> int | None:
        """Return the number of the process that works here now; None if none does."""
        try:
            with (self.root / ".lock").open() as lock:
                holder = holder_of(lock)
                # A killed process leaves its number. The lock is tried only where there is one.
                return None if holder is None or try_lock(lock) else holder
        except OSError:  # there is no lock yet, or it is another user's
            return None

    def remove_if_empty(self) -> None:
        """Remove a new workspace whose first stage failed."""
        for path in sorted(self.root.rglob("*"), reverse=True):  # what a folder holds comes first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if {path.name for path in self.root.iterdir()} <= {".lock", WORKSPACE_FILE, RECIPE_FILE}:
            shutil.rmtree(self.root)

    def check_version(self) -> None:
        path = self.root / WORKSPACE_FILE
        if not path.exists():
            atomic_write(
                path, encode_json({"schema": "arvg-trt/workspace", "version": WORKSPACE_VERSION})
            )
            return
        number = decode_json(path, dict[str, Any], do="remove the file to start over").get(
            "version"
        )
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise WorkspaceError(
                f"says version {str(number)[:40]!r}, which is no version of a workspace",
                where=str(path),
                do=f"write {WORKSPACE_VERSION}, or remove the file to start over",
            )
        if number > WORKSPACE_VERSION:
            raise WorkspaceError(
                f"workspace version {number} is newer than this tool's {WORKSPACE_VERSION}",
                where=str(path),
                do="update arvg-trt, or use another workspace",
            )

    def folder(self, *parts: str) -> Path:
        """Return the place of a stage's outputs, without what a killed process left beside it."""
        path = self.root.joinpath(*parts)
        if self._entered:  # else the leftovers may be of a process that works now
            recover_folder(path)
        return path

    def manifest(self, *parts: str, stage: str) -> Manifest:
        """Return the manifest of an earlier stage, or raise an error that names its command."""
        path = self.folder(*parts) / MANIFEST
        if self._new and not has_outputs(self.root):  # entering alone has written the file
            raise no_workspace(self.root)
        require_workspace(self.root)
        do = f"run `arvg-trt {stage}` first"
        if others := [name for name in self.named(*parts[:-1]) if name != parts[-1]]:
            do += f", or name what is there: --name {' or '.join(others)}"
        return decode_json(path, Manifest, do=do)

    @property
    def quantizations(self) -> list[str]:
        """Return the names of the quantizations that are there."""
        return self.named("quantize")

    def named(self, *parts: str) -> list[str]:
        """Return the names of what a stage has made, such as quantizations; of no parts, none."""
        found = self.root.joinpath(*parts).glob(f"*/{MANIFEST}") if parts else ()
        return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))
