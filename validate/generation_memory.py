"""Measure what a generator takes while it makes a batch of images: its caches, and all memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..runtime.folders import opener, read_spec
from ..runtime.generator import Generator, default_session
from ..runtime.kv_cache import PRESENT
from ..runtime.sessions.session import Array, DeviceValue, Session, SessionObserver
from ..workspace.peak_memory import resident_peak, status_bytes
from ..workspace.worker_process import run_isolated, serve_worker


class GenerationMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Hold bytes an image of a batch of ``images``.

    ``cache`` are keys and values behind the last step, of all rows of an image; 0 without any.
    ``peak`` is the resident memory above that of the opened graphs; None where the system or a GPU
    does not tell.
    """

    images: int
    cache: int
    peak: int | None


class MemoryTask(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the arguments of `measure_memory`."""

    folder: str
    labels: tuple[int, ...]
    threads: int


class CacheMeter(SessionObserver):
    """Keep in `most` the largest sum of bytes of the caches that a run of a graph gave."""

    def __init__(self, session: Session, most: list[int]) -> None:
        super().__init__(session)
        self._most = most

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds, host)
        stored = sum(
            math.prod(value.shape()) * item_bytes(self.types[name])
            for name, value in found.items()
            if name.startswith(PRESENT)
        )
        self._most[0] = max(self._most[0], stored)
        return found


def item_bytes(kind: str) -> int:
    """Return the bytes of an element of a session's type."""
    return 1 if kind.startswith("float8") else np.dtype(kind).itemsize


def generation_memory(folder: Path, labels: Sequence[int], threads: int) -> GenerationMemory:
    """Measure a batch of these labels on the CPU, in a process of its own.

    Raises:
        ArvgError: whatever opening and generating raise.
    """
    task = MemoryTask(folder=str(folder.absolute()), labels=tuple(labels), threads=threads)
    return run_isolated(__name__, task, GenerationMemory)


def measure_memory(task: MemoryTask) -> GenerationMemory:
    """Open a generator and make one batch, in a process that did nothing before."""
    folder, most = Path(task.folder), [0]
    _, spec = read_spec(folder)
    plain = opener(folder, default_session(spec), "cpu", static=spec.static_batch is not None)

    def opened(path: Path, threads: int) -> Session:
        return CacheMeter(plain(path, threads), most)

    generator = Generator.open(folder, session=opened, threads=task.threads, verify=False)
    with resident_peak() as followed:
        before = status_bytes("VmRSS")
        generator.generate(task.labels, batch_size=len(task.labels))
    peak = None if before is None or followed.bytes is None else followed.bytes - before
    count = len(task.labels)
    return GenerationMemory(
        images=count, cache=most[0] // count, peak=None if peak is None else peak // count
    )


if __name__ == "__main__":
    serve_worker(MemoryTask, measure_memory)
