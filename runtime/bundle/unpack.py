"""Unpack files of a bundle to a new folder of the user's, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...workspace.files import atomic_folder
from ..packed.expand import Progress
from ..packed.layout import PackedIndex
from .cache import require_room
from .layout import BundleFile, TargetGroup
from .packed_groups import expand_folders, expanded_list
from .reader import Bundle


def extract_new(
    bundle: Bundle,
    groups: Sequence[TargetGroup],
    files: Sequence[BundleFile],
    indexes: Mapping[str, PackedIndex],
    output: Path,
    progress: Progress,
) -> None:
    """Unpack files of some target groups to a new folder, once their engines are checked.

    The packed folders of `indexes` are expanded.

    Raises:
        IntegrityError: a file differs from its digest, or an engine from its group.
        WorkspaceError: the disk has no room.
    """
    for group in groups:
        bundle.require_engines(group)
    disk = next(each for each in output.absolute().parents if each.is_dir())
    needed = sum(file.bytes for file in (*files, *expanded_list(bundle, files, indexes)))
    require_room(disk, needed, "name a folder on another disk")
    with atomic_folder(output) as temporary:
        bundle.extract(files, temporary)
        expand_folders(bundle, temporary, indexes, progress)
