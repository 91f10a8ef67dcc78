"""Keep what each stage of a workspace took when it last ran, for those who plan the next run.

A file of its own: manifests, and so bundles, are the same bytes however long a stage took.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from .files import UNDECODABLE, atomic_write, encode_json
from .stage import StageResult

TIMES_FILE = "times.json"


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the seconds that a stage took, the bytes of its folder, and its peak of memory.

    `memory` is the most that was resident of this process, in bytes; None where the system did not
    tell, and where an earlier version ran it.
    """

    seconds: float
    bytes: int
    memory: int | None = None


def read_times(root: Path) -> dict[str, Took]:
    """Return what stages took, by their folder in the workspace; nothing where none was timed."""
    try:
        return msgspec.json.decode((root / TIMES_FILE).read_bytes(), type=dict[str, Took])
    except (FileNotFoundError, *UNDECODABLE):
        return {}


def record_times(root: Path, results: Iterable[StageResult]) -> None:
    """Add what the stages that ran have taken."""
    found = {
        result.folder.relative_to(root).as_posix(): Took(
            seconds=round(result.seconds, 3),
            bytes=folder_bytes(result.folder),
            memory=result.memory,
        )
        for result in results
        if not result.skipped
    }
    if found:
        atomic_write(root / TIMES_FILE, encode_json({**read_times(root), **found}))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
