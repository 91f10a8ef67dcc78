"""Expand a packed folder of graphs: once into the cache that processes share, or to a new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ...errors import WorkspaceError, bounded
from ...workspace.files import atomic_folder, sha256_file
from ...workspace.lead import folders_of_graphs
from ...workspace.stage import Reporter
from ..bundle.archive import NAME_A_BUNDLE
from ..bundle.cache import MARK_LENGTH, cached_folder, require_room
from ..bundle.layout import BundleFile
from .expand import expand_folder, megabytes
from .layout import INDEX_FILE, WEIGHTS_FILE, PackedIndex, is_packed, read_index


def expanded(folder: Path, reporter: Reporter | None = None) -> Path:
    """Return a folder of graphs as engines take it: itself, or of a packed one its cached copy.

    The copy is named by the digest of the index, and compared with it whenever it is opened.

    Raises:
        IntegrityError: the packed weights are cut off, changed, or those of another model.
        WorkspaceError: the cache is another user's, or a disk has no room.
    """
    if not is_packed(folder):
        return folder
    index = read_index(folder)
    mark = sha256_file(folder / INDEX_FILE)[:MARK_LENGTH]
    name = f"{mark}-{os.path.basename(os.path.abspath(folder))}"

    def write(temporary: Path) -> None:
        write_expanded(folder, index, temporary, reporter)

    return cached_folder("packed", name, expanded_files(folder, index), write)


def expand_new(
    folder: Path, output: Path, reporter: Reporter | None = None
) -> tuple[BundleFile, ...]:
    """Write what a packed folder expands to as a new folder, whole or not at all; list its files.

    Raises:
        IntegrityError: the packed weights are cut off, changed, or those of another model.
        WorkspaceError: the disk has no room.
    """
    index = read_index(folder)
    files = expanded_files(folder, index)
    disk = next(each for each in output.absolute().parents if each.is_dir())
    require_room(disk, sum(file.bytes for file in files), "name a folder on another disk")
    with atomic_folder(output) as temporary:
        write_expanded(folder, index, temporary, reporter)
    return files


def require_no_folder(path: Path) -> None:
    """Raise WorkspaceError for a folder that is not packed itself; name the packed one below it."""
    if not path.is_dir():
        return
    below = [f"{path / each}" for each in folders_of_graphs(path) if is_packed(path / each)]
    what = "is no packed folder itself, and no bundle" if below else "is a folder, not a bundle"
    do = f"name {bounded(below, 'folders')}" if below else NAME_A_BUNDLE
    raise WorkspaceError(what, where=str(path), do=do)


def expanded_files(folder: Path, index: PackedIndex) -> tuple[BundleFile, ...]:
    """Return what a packed folder expands to: what its index lists, and its other files."""
    others = [path for path in sorted(folder.iterdir()) if is_other(path)]
    listed = {file.path for file in index.files}
    for path in others:
        if path.name in listed:
            what = f"lies beside {INDEX_FILE}, which expands to a file of this name"
            raise WorkspaceError(what, where=str(path), do="remove it")
    return (
        *(BundleFile(path=f.path, sha256=f.sha256, bytes=f.bytes) for f in index.files),
        *(
            BundleFile(path=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)
            for path in others
        ),
    )


def is_other(path: Path) -> bool:
    """Return whether a file of a packed folder is neither its index nor its weights."""
    return path.is_file() and path.name not in (INDEX_FILE, WEIGHTS_FILE)


def write_expanded(
    folder: Path, index: PackedIndex, output: Path, reporter: Reporter | None = None
) -> None:
    """Write what a packed folder expands to into another, empty one."""
    for path in folder.iterdir():
        if is_other(path):
            shutil.copyfile(path, output / path.name)
    expand_folder(folder, index, output, megabytes(reporter))
