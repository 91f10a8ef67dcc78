"""Unpack a bundle's target group once, into a folder of the user's that processes share.

An entry is named by the digest of `bundle.json`, which names every file by its own. It appears in
one rename, under a lock; one that was changed is made anew, and one that nobody opened for a month
is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import WorkspaceError
from ...workspace.files import atomic_folder, sha256_file
from .layout import BundleFile, TargetGroup
from .reader import Bundle

CACHE_VARIABLE = "ARVG_TRT_CACHE"
MOST_DAYS = 30  # an entry lives after it was opened
DAY = 86_400  # seconds
SPARE = 64 * 2**20  # bytes to leave free on the disk
MARK_LENGTH = 32  # hexadecimal digits of a digest that name an entry


def cache_root() -> Path:
    """Return the user's cache folder: `ARVG_TRT_CACHE`, or what XDG says."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "arvg-trt"


def unpack_cached(bundle: Bundle, group: TargetGroup) -> Path:
    """Return the folder of a target group's files, unpacked there if it is not yet.

    Raises:
        IntegrityError: a file of the bundle differs from its digest.
        WorkspaceError: the cache is another user's, or the disk has no room.
    """
    files = (bundle.facts_file, *bundle.facts.documents, *group.files)
    root = own_folder(cache_root() / "bundles")
    folder = root / f"{bundle.facts_file.sha256[:MARK_LENGTH]}-{group.name}"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not is_whole(folder, files):
            shutil.rmtree(folder, ignore_errors=True)
            remove_old(root)
            require_room(root, sum(file.bytes for file in files))
            with atomic_folder(folder) as temporary:
                bundle.extract(files, temporary)
        os.utime(folder)
    return folder


def own_folder(path: Path) -> Path:
    """Make a folder that only this user may change, or check that it is one.

    Raises:
        WorkspaceError: others may change it, so that they could change what is opened from it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in (path, path.parent):
        state = each.stat()
        if state.st_uid != os.getuid():
            problem = f"belongs to the user {state.st_uid}, not to {os.getuid()}"
        elif stat.S_IMODE(state.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            problem = "can be changed by other users"
        else:
            continue
        raise WorkspaceError(problem, where=str(each), do=f"set {CACHE_VARIABLE} to another folder")
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait for a process that holds it."""
    with path.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_whole(folder: Path, files: Sequence[BundleFile]) -> bool:
    """Return whether a folder has these files as they were packed, and no others."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    return present == {file.path for file in files} and all(
        not (folder / file.path).is_symlink()
        and (folder / file.path).stat().st_size == file.bytes
        and sha256_file(folder / file.path) == file.sha256
        for file in files
    )


def require_room(root: Path, needed: int) -> None:
    """Raise WorkspaceError where the disk cannot take so many bytes."""
    free = shutil.disk_usage(root).free
    if free < needed + SPARE:
        raise WorkspaceError(
            f"has {free / 1e6:,.0f} MB free, and unpacking takes {needed / 1e6:,.0f}",
            where=str(root),
            do=f"free some space, or set {CACHE_VARIABLE} to a folder on another disk",
        )


def remove_old(root: Path, days: float = MOST_DAYS) -> list[Path]:
    """Remove the entries that were last opened so many days ago and that nobody unpacks now."""
    removed = []
    for folder in root.iterdir():
        if not folder.is_dir() or time.time() - folder.stat().st_mtime < days * DAY:
            continue
        with folder.with_name(f"{folder.name}.lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)
        removed.append(folder)
    return removed
