"""Remember for some days that the engine of a kit could not be built on this device.

A build takes minutes: without that, each `encode` of a bundle would try it again and fail again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ...workspace.files import UNDECODABLE, atomic_write, encode_json, own_folder, user_cache
from ..devices import Device, Gpu

DAYS, DAY = 7, 86_400  # a failure is remembered; seconds
FOLDER = "failures"


class FailedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """Say why a build failed, and when, in seconds since 1970."""

    reason: str
    when: float

    @property
    def text(self) -> str:
        """Return why it is not built now, and how it is tried again."""
        hours = max(0.0, time.time() - self.when) / 3600
        ago = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} h"
        return (
            f"it is not built: that failed here {ago} ago ({self.reason}); "
            "`arvg-trt build --from FILE` tries it again"
        )


def record_of(kit: Path, builder: str, release: str | None, device: Device, gpu: Gpu) -> Path:
    """Return where the failure of a build is kept: of these files, builder, GPU and driver."""
    facts = (builder, release, device.driver, gpu.name, gpu.sm)
    mark = hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]
    return user_cache() / FOLDER / f"{kit.parent.name}-{mark}.json"


def remembered(record: Path) -> FailedBuild | None:
    """Return the failure that is kept there; None if there is none, or it is too old."""
    try:
        found = msgspec.json.decode(record.read_bytes(), type=FailedBuild)
    except (OSError, *UNDECODABLE):  # what cannot be read is tried again
        return None
    return found if 0 <= time.time() - found.when < DAYS * DAY else None


def remember(record: Path, reason: str) -> None:
    """Keep the failure of a build; a cache that cannot be written keeps none."""
    with contextlib.suppress(OSError, WorkspaceError):
        own_folder(record.parent)
        atomic_write(record, encode_json(FailedBuild(reason=reason, when=time.time())))


def forget(kit: Path) -> None:
    """Forget the failures of a kit, which was built."""
    for record in (user_cache() / FOLDER).glob(f"{kit.parent.name}-*.json"):
        record.unlink(missing_ok=True)


def forget_old(days: float) -> None:
    """Forget the failures that are so many days old."""
    for record in (user_cache() / FOLDER).glob("*.json"):
        if time.time() - record.stat().st_mtime >= days * DAY:
            record.unlink(missing_ok=True)
