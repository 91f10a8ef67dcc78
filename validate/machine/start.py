"""Measure what a fresh process takes to open a folder of graphs and use it once: memory and time.

A device starts so. What Python and its libraries take before counts neither as memory nor as time.
The files were read shortly before, so that they come from the system's cache and not from a disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from ...errors import ArvgError
from ...runtime.devices import this_device
from ...runtime.folders import opener
from ...runtime.generator import Generator
from ...runtime.images import to_model
from ...runtime.sessions.open import fast_session
from ...runtime.sessions.placement import gpu_of
from ...runtime.tokenizer import ImageTokenizer
from ...samples.files import Array, GraphChain, load_sample
from ...workspace.facts import ModelKind
from ...workspace.peak_memory import status_bytes
from ...workspace.stage import Reporter
from ...workspace.worker_process import WorkerCrash, run_isolated, serve_worker
from .gpu import PeakMemory

WORKER = "arvg_trt.validate.machine.start"


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Say what is opened, how and where, and the side of the image that a tokenizer is given.

    ``graphs`` of one's own run in turn, fed with the ``sample``, a file of arrays.
    """

    folder: str
    kind: ModelKind
    side: int
    graphs: tuple[str, ...] = ()
    sample: str | None = None
    threads: int
    device: str = "cpu"
    allow_fallback: bool = False


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what one process took: milliseconds, and bytes at its peak.

    ``first_ms`` is of the first image or sample behind opening. ``memory_bytes`` is None where the
    system does not tell, ``device_bytes`` without a GPU.
    """

    load_ms: float
    first_ms: float
    memory_bytes: int | None = None
    device_bytes: int | None = None


class Starts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what some processes took one after the other: times of each, and the highest peaks.

    Older reports have no ``first_ms`` of graphs of one's own, which were only opened.
    """

    load_ms: tuple[float, ...]
    first_ms: tuple[float, ...] = ()
    memory_bytes: int | None = None
    device_bytes: int | None = None

    @classmethod
    def of(cls, each: Sequence[Start]) -> Starts:
        """Return what some starts took together, one at least."""
        return cls(
            load_ms=tuple(start.load_ms for start in each),
            first_ms=tuple(start.first_ms for start in each),
            memory_bytes=_most(start.memory_bytes for start in each),
            device_bytes=_most(start.device_bytes for start in each),
        )

    @property
    def load_median(self) -> float:
        """Return the median milliseconds of opening."""
        return statistics.median(self.load_ms)

    @property
    def first_median(self) -> float | None:
        """Return the median milliseconds of the first image or sample; None without one."""
        return statistics.median(self.first_ms) if self.first_ms else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def measure_starts(
    requests: Mapping[str, StartRequest], reporter: Reporter, count: int
) -> dict[str, Starts]:
    """Start each of some candidates in turn, `count` times, each in a process of its own.

    One that fails is a warning, and has no figures.
    """
    found: dict[str, list[Start]] = {name: [] for name in requests}
    failed: set[str] = set()
    for _ in range(count):
        for name, request in requests.items():
            if name in failed:
                continue
            try:
                found[name].append(run_isolated(WORKER, request, Start))
            except (ArvgError, WorkerCrash, RuntimeError) as error:
                failed.add(name)
                reporter.warn(f"memory and start of {name} were not measured: {error}")
    return {name: Starts.of(each) for name, each in found.items() if name not in failed and each}


def start(request: StartRequest) -> Start:
    """Open and use a folder in this process, which did nothing before."""
    index = gpu_of(request.device, this_device())
    arrays = {} if request.sample is None else load_sample(Path(request.sample))
    with ExitStack() as stack:
        gpu = None if index is None else stack.enter_context(PeakMemory(index))
        before = status_bytes("VmRSS")
        began = time.perf_counter()
        use = opened(request, arrays)
        loaded = time.perf_counter()
        use()
        used = time.perf_counter()
    peak = status_bytes("VmHWM")
    return Start(
        load_ms=1000 * (loaded - began),
        first_ms=1000 * (used - loaded),
        memory_bytes=None if before is None or peak is None else max(0, peak - before),
        device_bytes=None if gpu is None else gpu.bytes,
    )


def opened(request: StartRequest, arrays: Mapping[str, Array]) -> Callable[[], object]:
    """Open a folder, and return what uses it once."""
    folder, threads, device = Path(request.folder), request.threads, request.device
    allowed = request.allow_fallback
    if request.kind == "generator":
        generator = Generator.open(folder, device=device, allow_fallback=allowed, threads=threads)
        return lambda: generator.generate([0])
    if request.kind == "tokenizer":
        tokenizer = ImageTokenizer.open(
            folder, device=device, allow_fallback=allowed, threads=threads
        )
        image = to_model(tokenizer.fit(np.zeros((request.side, request.side, 3), np.uint8))[0])

        def both() -> object:
            tokens, latent = tokenizer.encode(image)
            return tokenizer.decode(latent if tokens is None else tokens)

        return both
    placed = opener(folder, fast_session, device, allow_fallback=allowed)
    chain = GraphChain.open(folder, request.graphs, session=placed, threads=threads)
    return lambda: chain.run(arrays)


if __name__ == "__main__":
    serve_worker(StartRequest, start)
