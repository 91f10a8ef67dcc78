"""Expand the packed folders of a bundle once its files are unpacked and compared."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..packed.expand import Progress, expand_in_place
from ..packed.layout import INDEX_FILE, MOST_INDEX, WEIGHTS_FILE, PackedIndex, parse_index
from .archive import refused
from .layout import BLOBS, MOST_FILES, BundleFile, folded
from .reader import Bundle


def read_indexes(bundle: Bundle, files: Sequence[BundleFile]) -> dict[str, PackedIndex]:
    """Return the indexes of packed folders among files of a bundle, by the path of the folder.

    Raises:
        IntegrityError: one is damaged, has no packed weights beside it, or they are others.
    """
    named = {file.path: file for file in files}
    found: dict[str, PackedIndex] = {}
    for path, file in named.items():
        folder, _, name = path.rpartition("/")
        if name != INDEX_FILE:
            continue
        if file.bytes > MOST_INDEX:
            raise refused(f"{path} has {file.bytes} bytes, too many to be true", bundle.where)
        data = io.BytesIO()
        bundle.blobs.copy(BLOBS + file.sha256, data, path)
        index = parse_index(data.getvalue(), f"{bundle.where}: {path}")
        weights = named.get(f"{folder}/{WEIGHTS_FILE}")
        if weights is None or (weights.sha256, weights.bytes) != (index.sha256, index.bytes):
            raise refused(f"{path} is of other packed weights than lie beside it", bundle.where)
        found[folder] = index
    return found


def expanded_list(
    bundle: Bundle, files: Sequence[BundleFile], indexes: Mapping[str, PackedIndex]
) -> tuple[BundleFile, ...]:
    """Return what files of a bundle are once their packed folders are expanded.

    Raises:
        IntegrityError: a packed folder expands to a file that is there already.
    """
    gone = {f"{folder}/{name}" for folder in indexes for name in (INDEX_FILE, WEIGHTS_FILE)}
    kept = [file for file in files if file.path not in gone]
    made = [
        BundleFile(path=f"{folder}/{file.path}", sha256=file.sha256, bytes=file.bytes)
        for folder, index in indexes.items()
        for file in index.files
    ]
    names = {folded(file.path) for file in kept}
    for file in made:
        if folded(file.path) in names:
            raise refused(f"expands to {file.path[:100]}, which is there already", bundle.where)
    if len(kept) + len(made) > MOST_FILES:
        raise refused(f"expands to more than {MOST_FILES:,} files", bundle.where)
    return (*kept, *made)


def expand_folders(
    bundle: Bundle, root: Path, indexes: Mapping[str, PackedIndex], progress: Progress
) -> None:
    """Expand packed folders of a bundle below `root`, to which their files were unpacked."""
    for folder in indexes:
        where = f"{bundle.where}: {folder}/{WEIGHTS_FILE}"
        expand_in_place(root.joinpath(*folder.split("/")), progress, where)
