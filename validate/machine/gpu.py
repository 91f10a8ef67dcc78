"""Read what a GPU holds and how fast it runs, as NVIDIA's own tool tells it.

`nvidia-smi` comes with the driver. Where it is missing or tells nothing, there is no figure.
"""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType

import msgspec

PROGRAM = "nvidia-smi"
MIB = 1 << 20
SECONDS = 10.0
# What is asked of it, in the order of `GpuState`.
ASKED = ("memory.used", "clocks.sm", "clocks.mem", "utilization.gpu")


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the bytes in use by all processes, the clocks in MHz, and the per cent that is busy.

    A figure that the tool does not tell of this GPU is None.
    """

    memory_bytes: int | None
    megahertz: float | None
    memory_megahertz: float | None
    busy_percent: float | None


def read_gpu(index: int, program: str = PROGRAM) -> GpuState | None:
    """Return the state of a GPU; None where the tool is missing, fails or says something else."""
    command = [program, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*command, "-i", str(index)], capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    parts = done.stdout.strip().split(",")
    if done.returncode or len(parts) != len(ASKED):
        return None
    memory, clock, memory_clock, busy = map(_number, parts)
    if memory is None and clock is None:
        return None
    return GpuState(
        memory_bytes=None if memory is None else int(memory * MIB),
        megahertz=clock,
        memory_megahertz=memory_clock,
        busy_percent=busy,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]", as of a GPU without such a counter


class PeakMemory:
    """Follow a GPU's memory while a block runs; `bytes` is the most above what was in use before.

    What other processes take meanwhile counts too. It is read again and again, so that a peak of
    less than a few hundredths of a second may be missed.
    """

    def __init__(self, index: int, program: str = PROGRAM) -> None:
        self._index, self._program = index, program
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._before = self._most = self._read()

    def _read(self) -> int | None:
        state = read_gpu(self._index, self._program)
        return None if state is None else state.memory_bytes

    def _follow(self) -> None:
        while not self._stop.wait(0.02):
            self._note()

    def _note(self) -> None:
        now = self._read()
        if now is not None and self._most is not None:
            self._most = max(self._most, now)

    def __enter__(self) -> PeakMemory:
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._note()
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def bytes(self) -> int | None:
        """Return the bytes; None where the tool tells nothing."""
        if self._most is None or self._before is None:
            return None
        return self._most - self._before
