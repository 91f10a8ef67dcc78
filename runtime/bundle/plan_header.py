"""Read the header of an engine file: which builder made it, for which GPUs, and how long it is.

A plan of TensorRT for RTX begins with `vtrt`, has its size at byte 16 and its builder's version at
byte 24. Its program is text, in which `accelerators={sm86 sm89 }` names the GPUs. TensorRT's own
plans are not described anywhere; only the driver's side reads them.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

import msgspec

PLAN_MARK = b"vtrt"
SIZE, VERSION = slice(16, 24), slice(24, 28)
# Without an end to the list a file that repeats `sm86 ` would take memory for each.
ACCELERATORS = re.compile(rb"accelerators=\{((?:sm\d{2,3} ){1,64})\}")


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an engine file; `version` is "" and `targets` are none where it does not say them.

    `size` is what the header says, None where it does not.
    """

    version: str = ""
    size: int | None = None
    targets: tuple[str, ...] = ()
    bytes: int


def read_plan_header(path: Path) -> PlanHeader | None:
    """Return the header of an engine file; None for a file that is no engine."""
    if path.stat().st_size == 0:  # what is empty cannot be mapped
        return parse_plan_header(memoryview(b""), path.name)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        return parse_plan_header(plan, path.name)


def parse_plan_header(plan: mmap.mmap | memoryview, name: str) -> PlanHeader | None:
    """Return the header of an engine's bytes; None if neither they nor the name are an engine's."""
    size = len(plan)
    head = bytes(plan[: VERSION.stop])
    if not head.startswith(PLAN_MARK) or len(head) < VERSION.stop:
        return PlanHeader(bytes=size) if name.endswith(".engine") else None
    found = ACCELERATORS.search(plan)
    return PlanHeader(
        version=".".join(str(part) for part in head[VERSION]),
        size=struct.unpack("<Q", head[SIZE])[0],
        targets=() if found is None else tuple(found[1].decode().split()),
        bytes=size,
    )


def plan_problem(
    header: PlanHeader, kind: str, version: str, targets: tuple[str, ...]
) -> str | None:
    """Return how a header contradicts what is said of an engine; None where it does not.

    `kind` is the back end that is said to have built it.
    """
    if not header.bytes:
        return "is empty"
    if kind == "tensorrt_rtx" and not header.version:
        return "is no engine of TensorRT for RTX"
    if header.size is not None and header.size > header.bytes:
        return f"is cut off: {header.bytes:,} of {header.size:,} bytes"
    if header.size is not None and header.size < header.bytes:
        return f"has {header.bytes:,} bytes, and its header says {header.size:,}"
    if header.version and version and header.version != version:
        return f"was built by version {header.version}, not {version}"
    lacking = [sm for sm in targets if header.targets and sm not in header.targets]
    if lacking:
        return f"is for {' '.join(header.targets)}, not for {' '.join(lacking)}"
    return None
