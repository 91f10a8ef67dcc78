"""Unpack a bundle's target group once, into a folder of the user's that processes share.

An entry is named by the digest of `bundle.json`, which names every file by its own. So are packed
folders of their own, by that of their index. It appears in
one rename, under a lock; one that was changed is made anew, and one that nobody opened for a month
is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ...workspace.files import (
    OTHER_CACHE,
    UNDECODABLE,
    atomic_folder,
    cache_problem,
    own_folder,
    sha256_file,
    user_cache,
)
from ...workspace.locks import locked, try_lock
from ..packed.expand import Progress, untold
from .failures import forget_old
from .layout import FACTS_FILE, BundleFile, TargetGroup
from .packed_groups import expand_folders, expanded_list, read_indexes
from .reader import Bundle

KINDS = ("bundles", "engines", "packed", "openvino")  # folders of the cache
MOST_DAYS = 30  # an entry lives after it was opened
DAY = 86_400  # seconds
SPARE = 64 * 2**20  # bytes to leave free on the disk
MARK_LENGTH = 32  # hexadecimal digits of a digest that name an entry
# The name of an entry, and of what a killed process left of one.
ENTRY = re.compile(rf"\.?[0-9a-f]{{{MARK_LENGTH}}}-.+")
LEFTOVER = re.compile(r"(\.[^.]+\.tmp|\.old)\Z")


def unpack_cached(bundle: Bundle, group: TargetGroup, progress: Progress = untold) -> Path:
    """Return the folder of a target group's files, unpacked there if it is not yet.

    Packed weights lie there expanded. `progress` is told of the bytes that they expand to.

    Raises:
        IntegrityError: a file of the bundle differs from its digest, or an engine from its group.
        WorkspaceError: the cache is another user's, or the disk has no room.
    """
    files = (bundle.facts_file, *bundle.facts.documents, *group.files)
    indexes = read_indexes(bundle, files)

    def write(folder: Path) -> None:
        bundle.require_engines(group)
        bundle.extract(files, folder)
        expand_folders(bundle, folder, indexes, progress)

    name = f"{bundle.facts_file.sha256[:MARK_LENGTH]}-{group.name}"
    expanded = expanded_list(bundle, files, indexes)
    packed = sum(index.bytes for index in indexes.values())
    return cached_folder("bundles", name, expanded, write, beside=packed)


def cached_folder(
    kind: str,
    name: str,
    files: Sequence[BundleFile],
    write: Callable[[Path], None],
    *,
    beside: int = 0,
) -> Path:
    """Return an entry of the cache with exactly these files, written by `write` if it is not yet.

    Writing takes so many bytes `beside` them.

    A cache that cannot be written, as in the image of a device, serves what is whole in it.

    Raises:
        WorkspaceError: the cache is another user's, or the disk has no room.
    """
    root = own_folder(user_cache() / kind)
    folder = root / name
    if not os.access(root, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        if is_whole(folder, files):
            return folder
        what = "cannot be written, and this bundle is not whole in it"
        raise WorkspaceError(what, where=str(root), do=OTHER_CACHE)
    with locked(lock_of(folder)):
        if not is_whole(folder, files):
            remove(folder)
            remove_old(root)
            require_room(root, sum(file.bytes for file in files) + beside, OTHER_CACHE)
            with atomic_folder(folder) as temporary:
                write(temporary)
        os.utime(folder)
    return folder


def lock_of(folder: Path) -> Path:
    """Return the lock file of an entry, or of what a killed process left of it."""
    name = LEFTOVER.sub("", folder.name[1:]) if folder.name.startswith(".") else folder.name
    return folder.with_name(f"{name}.lock")


def is_whole(folder: Path, files: Sequence[BundleFile]) -> bool:
    """Return whether a folder has these files as they were packed, and no others.

    Links are none of them, wherever they lead; neither is what cannot be read.
    """
    expected = {file.path: file for file in files}
    found: dict[str, int] = {}
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        for path in folder.rglob("*"):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                found[path.relative_to(folder).as_posix()] = state.st_size
            elif not stat.S_ISDIR(state.st_mode):
                return False
        return found == {path: file.bytes for path, file in expected.items()} and all(
            sha256_file(folder / path) == file.sha256 for path, file in expected.items()
        )
    except OSError:
        return False


def holds(folder: Path, files: Sequence[BundleFile]) -> bool:
    """Return whether a folder has these files as they were packed, none by way of a link.

    There may be others, as of a workspace that was worked in since.
    """
    for file in files:
        path = folder / file.path
        between = [each for each in path.parents if each.is_relative_to(folder)]
        try:
            if any(each.is_symlink() for each in (path, *between)):
                return False
            if not path.is_file() or path.stat().st_size != file.bytes:
                return False
            if sha256_file(path) != file.sha256:
                return False
        except OSError:
            return False
    return True


def remove(path: Path) -> None:
    """Remove what is in the place of an entry: a folder, a file, or a link but not its end."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_room(folder: Path, needed: int, do: str) -> None:
    """Raise WorkspaceError where the disk of a folder cannot take so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        what = f"has {free / 1e6:,.0f} MB free, and unpacking takes {needed / 1e6:,.0f}"
        raise WorkspaceError(what, where=str(folder), do=f"free some space, or {do}")


def remove_old(root: Path, days: float = MOST_DAYS) -> list[Path]:
    """Remove the entries that were last opened so many days ago and that nobody unpacks now.

    Nothing else that lies there is touched: the folder may be one that somebody uses for more.
    """
    removed = []
    for folder in sorted(root.iterdir()):
        if not ENTRY.fullmatch(folder.name) or not is_old(folder, days):
            continue
        with lock_of(folder).open("a+") as stream:
            if not try_lock(stream):
                continue
            if is_old(folder, days):  # nobody has opened or removed it in between
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Describe what the cache keeps: unpacked or expanded files, or engines built of them.

    ``bundle`` names the model and its quantization, where they are of a bundle that is still there.
    """

    folder: Path
    bytes: int
    days: float
    bundle: str | None = None


def cache_entries() -> tuple[CacheEntry, ...]:
    """Return what the cache keeps, with its size and the days since it was last opened.

    Raises:
        WorkspaceError: no folder can be where it should lie.
    """
    if (problem := cache_problem()) is not None:
        raise WorkspaceError(problem, do=OTHER_CACHE)
    found, named = [], bundle_names(user_cache() / KINDS[0])
    for kind in KINDS:
        root = user_cache() / kind
        folders = sorted(root.iterdir()) if root.is_dir() else []
        for folder in folders:
            if folder.is_dir() and not folder.is_symlink() and ENTRY.fullmatch(folder.name):
                sizes = (path.lstat().st_size for path in folder.rglob("*"))
                days = (time.time() - folder.stat().st_mtime) / DAY
                found.append(
                    CacheEntry(
                        folder=folder,
                        bytes=sum(sizes),
                        days=max(0.0, days),
                        bundle=named.get(folder.name[:MARK_LENGTH]),
                    )
                )
    return tuple(found)


class _Named(msgspec.Struct, frozen=True):
    """Hold what `bundle.json` calls a bundle."""

    model: str
    quantization: str


def bundle_names(root: Path) -> dict[str, str]:
    """Return what the unpacked bundles of a folder hold, by the digits that begin their entries."""
    found = {}
    for path in sorted(root.glob(f"*/{FACTS_FILE}")):
        with contextlib.suppress(OSError, *UNDECODABLE):
            facts = msgspec.json.decode(path.read_bytes(), type=_Named)
            found[path.parent.name[:MARK_LENGTH]] = f"{facts.model}, {facts.quantization}"
    return found


def clear_cache(days: float = 0.0) -> list[Path]:
    """Remove what was last opened so many days ago and that nobody unpacks now.

    Failed builds of that age are tried again.
    """
    forget_old(days)
    roots = [user_cache() / kind for kind in KINDS]
    return [folder for root in roots if root.is_dir() for folder in remove_old(root, days)]


def is_old(folder: Path, days: float) -> bool:
    """Return whether a folder is there and was last opened so many days ago."""
    try:
        state = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(state.st_mode) and time.time() - state.st_mtime >= days * DAY
