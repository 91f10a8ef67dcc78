"""Measure the memory that opening and using a folder of graphs takes, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from ...errors import ArvgError
from ...runtime.folders import opener
from ...runtime.generator import Generator
from ...runtime.images import to_model
from ...runtime.sessions.open import fast_session
from ...runtime.tokenizer import ImageTokenizer
from ...workspace.facts import ModelKind
from ...workspace.stage import Reporter
from ...workspace.worker_process import WorkerCrash, run_isolated, serve_worker

WORKER = "arvg_trt.validate.measure.memory"
STATUS = Path("/proc/self/status")
KIB = 1024


class MemoryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Say what is opened, how, and the side of the image that a tokenizer is given."""

    folder: str
    kind: ModelKind
    side: int
    threads: int


def measure_memory(request: MemoryRequest, reporter: Reporter) -> int | None:
    """Return the most bytes that a fresh process took to open graphs on the CPU and use them once.

    What it took before, for Python and libraries, does not count. None where the system does not
    say it, or with a warning where the process failed.
    """
    if not STATUS.is_file():
        return None
    try:
        return run_isolated(WORKER, request, int)
    except (ArvgError, WorkerCrash, RuntimeError) as error:
        reporter.warn(f"memory was not measured: {error}")
        return None


def use(request: MemoryRequest) -> int:
    """Return by how many bytes the peak of this process is above what it had before."""
    before = status_bytes("VmRSS")
    folder, threads = Path(request.folder), request.threads
    if request.kind == "generator":
        Generator.open(folder, device="cpu", threads=threads).generate([0])
    elif request.kind == "tokenizer":
        tokenizer = ImageTokenizer.open(folder, device="cpu", threads=threads)
        image = np.zeros((request.side, request.side, 3), np.uint8)
        tokens, latent = tokenizer.encode(to_model(tokenizer.fit(image)[0]))
        tokenizer.decode(latent if tokens is None else tokens)
    else:
        opened = opener(folder, fast_session, "cpu")
        # Named, so that all are open at once.
        sessions = [opened(path, threads) for path in sorted(folder.glob("*.onnx"))]
        del sessions
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(name: str) -> int:
    """Return a line of what Linux says of this process, such as VmHWM, in bytes."""
    lines = STATUS.read_text().splitlines()
    return KIB * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    serve_worker(MemoryRequest, use)
