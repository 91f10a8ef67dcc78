"""Estimate what building engines takes before it begins: memory, disk and time.

Measured with TensorRT for RTX 1.7 on two cores, up to 1.9 GiB of weights: the builder's process
takes 0.2 GB and 3.2 to 3.7 times the bytes of the weights it reads, a plan 2 to 4 % more than these
bytes. Graphs of 29 to 37 products took 0.5 to 0.8 s, 24 blocks of 1,024 channels 12 to 14 s, so
that a time is within a factor of five.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import OutOfMemory, WorkspaceError

BASE_MEMORY, MEMORY_PER_BYTE = 200_000_000, 3.7
DISK_PER_BYTE = 2.04  # the half-precision copy, and the plan
SECONDS_PER_PRODUCT = 0.08
LONG, LARGE = 60, 2_000_000_000  # seconds, and bytes of memory
MEMORY_FILE = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold bytes and seconds; memory is that of the largest graph, the others add up."""

    memory: int
    disk: int
    seconds: float

    @property
    def is_large(self) -> bool:
        """Return whether a user waits for the build, or misses the memory."""
        return self.seconds >= LONG or self.memory >= LARGE

    def __str__(self) -> str:
        time = f"about {self.seconds / 60:.1f} min" if self.seconds >= 60 else "under a minute"
        return f"{self.memory / 1e9:.1f} GB of memory, {self.disk / 1e9:.2f} GB of disk, {time}"


def estimate(graphs: Iterable[Path], engines: int) -> Estimate:
    """Return what `engines` engines of each graph take, built one after another."""
    from .products import PRODUCTS, read_graph

    sizes, products = [0], 0
    for path in graphs:
        model = read_graph(path)
        sizes.append(sum(map(half_bytes, model.graph.initializer)))
        products += sum(node.op_type in PRODUCTS for node in model.graph.node)
    return Estimate(
        memory=BASE_MEMORY + round(MEMORY_PER_BYTE * max(sizes)),
        disk=round(DISK_PER_BYTE * sum(sizes)) * engines,
        seconds=SECONDS_PER_PRODUCT * products * engines,
    )


def half_bytes(tensor: object) -> int:
    """Return the bytes of an ONNX constant in a half-precision copy."""
    from onnx import TensorProto

    assert isinstance(tensor, TensorProto)
    bits: dict[int, int] = {
        **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
        **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
        TensorProto.FLOAT8E4M3FN: 8,
        **dict.fromkeys((TensorProto.INT64, TensorProto.DOUBLE), 64),
        TensorProto.INT32: 32,
    }
    count: int = math.prod(tensor.dims)
    return -(-count * bits.get(tensor.data_type, 16) // 8)


def require_room(needed: Estimate, folder: Path) -> None:
    """Refuse a build for which memory or the disk of `folder` cannot suffice.

    Raises:
        OutOfMemory: the system has less memory than the builder takes.
        WorkspaceError: the disk has less room.
    """
    memory = available_memory()
    if memory is not None and memory < needed.memory:
        raise OutOfMemory(
            f"the build takes about {needed.memory / 1e9:.1f} GB of memory, and "
            f"{memory / 1e9:.1f} GB are free",
            do="free memory, or build on a larger machine",
        )
    free = shutil.disk_usage(folder).free
    if free < needed.disk:
        raise WorkspaceError(
            f"the build takes about {needed.disk / 1e9:.2f} GB of disk, and "
            f"{free / 1e9:.2f} GB are free",
            where=str(folder),
            do="free disk space, or name fewer targets",
        )


def available_memory() -> int | None:
    """Return the bytes of memory that Linux can give, swap not counted; None elsewhere."""
    try:
        lines = MEMORY_FILE.read_text().splitlines()
    except OSError:
        return None
    amounts = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) * 1024 for words in amounts), None)
