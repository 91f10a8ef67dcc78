"""Keep what each stage of a workspace took when it last ran, for those who plan the next run.

Whatever ran it is timed, `run` or the stage's own command; the latest comes last. It is a file of
its own: manifests, and so bundles, are the same bytes however long a stage took.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from .files import UNDECODABLE, atomic_write, encode_json
from .workspace import WORKSPACE_FILE

TIMES_FILE = "times.json"


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the seconds that a stage took, the bytes of its folder, and its peak of memory.

    `memory` is the most that was resident, in bytes, of this process with the one that it waited
    for; None where the system did not tell, and where an earlier version ran it.
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


def record_time(folder: Path, seconds: float, memory: int | None) -> None:
    """Add what a stage took to the times of the workspace that its folder lies in, as the latest.

    A folder outside of any is left alone.
    """
    root = next((above for above in folder.parents if (above / WORKSPACE_FILE).is_file()), None)
    if root is None:
        return
    name = folder.relative_to(root).as_posix()
    times = {key: took for key, took in read_times(root).items() if key != name}
    times[name] = Took(seconds=round(seconds, 3), bytes=folder_bytes(folder), memory=memory)
    atomic_write(root / TIMES_FILE, encode_json(times))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
