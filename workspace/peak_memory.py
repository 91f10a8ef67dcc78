"""Follow the most memory that this process has had resident, from a point in time on.

Linux keeps one peak a process (VmHWM of /proc/self/status), which can be set back to what is
resident now. Measurements nest all the same: before it is set back, those that go on take note.
What runs in a subprocess of its own tells its peak when it ends.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")  # writing 5 sets the peak to what is resident now
KIB = 1024


@dataclass(slots=True)
class ResidentPeak:
    """Hold the most bytes that were resident; None until known, and where the system won't tell."""

    bytes: int | None = None


_followed: list[ResidentPeak] = []


@contextlib.contextmanager
def resident_peak() -> Iterator[ResidentPeak]:
    """Follow the peak while the block runs; what is yielded holds it behind the block."""
    found = ResidentPeak()
    take_note()
    if not restart():
        yield found
        return
    _followed.append(found)
    try:
        yield found
    finally:
        take_note()
        _followed[:] = [each for each in _followed if each is not found]


def take_note() -> None:
    """Raise the peaks that are followed to that of the process."""
    if _followed:
        peak = status_bytes("VmHWM") or 0
        for each in _followed:
            each.bytes = max(each.bytes or 0, peak)


def add_child(peak: int | None) -> None:
    """Count the peak of a process that this one waited for, beside what it held meanwhile."""
    if peak is not None:
        both = (status_bytes("VmRSS") or 0) + peak
        for each in _followed:
            each.bytes = max(each.bytes or 0, both)


def restart() -> bool:
    """Set the peak of the process back, and return whether the system allows it."""
    if sys.platform != "linux":
        return False
    try:
        RESET.write_text("5")
    except OSError:  # a kernel or container without it
        return False
    return True


def status_bytes(key: str) -> int | None:
    """Return a line of what Linux says of this process, such as VmHWM, in bytes; else None."""
    if not STATUS.is_file():
        return None
    lines = STATUS.read_text().splitlines()
    return next((KIB * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
