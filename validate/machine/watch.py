"""Watch what else a machine does while something is timed, and say whether it was busy.

Before, meanwhile and after, the work of all processors is read, less that of this process: what
is left is of others. Beyond a tenth of the processors the machine is called busy, for then the
timed work had to wait, or ran at other clocks than it would alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

import msgspec

from .gpu import GpuState, read_gpu
from .processor import Reading, governor, load_average, megahertz, others, read_processors

PAUSE = 0.3  # seconds before and after, in which this process does nothing
BUSY = 0.1  # of the processors, kept busy by others


class MachineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Say what a machine did beside the timed rounds, before, during and after them.

    ``others_*`` are processors that other processes kept busy, on average; ``load_*`` the system's
    own average over a minute, which counts this process too. Clocks are in MHz, of the
    processors and of the GPU that was used. What the system does not tell is None.
    """

    processors: int
    others_before: float | None = None
    others_during: float | None = None
    others_after: float | None = None
    load_before: float | None = None
    load_after: float | None = None
    megahertz_before: float | None = None
    megahertz_after: float | None = None
    governor: str | None = None
    gpu_before: GpuState | None = None
    gpu_after: GpuState | None = None

    @property
    def most(self) -> float | None:
        """Return the most processors that others kept busy in any of the three times."""
        every = (self.others_before, self.others_during, self.others_after)
        return max((each for each in every if each is not None), default=None)

    @property
    def busy(self) -> bool | None:
        """Return whether others kept more than a tenth of the processors busy; None: not known."""
        return None if self.most is None else self.most > BUSY * self.processors

    @property
    def text(self) -> str:
        """Return what others did, in words; empty where it is not known."""
        if self.most is None:
            return ""
        return f"others kept {self.most:.1f} of {self.processors} processors busy"


class Watch:
    """Watch the machine while a block of timed work runs; `found` says what it did."""

    def __init__(
        self,
        gpu: int | None = None,
        *,
        read: Callable[[], Reading | None] = read_processors,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gpu, self._read, self._pause = gpu, read, pause
        self._readings: list[Reading | None] = []
        self._before = self._after = MachineLoad(processors=os.cpu_count() or 1)

    def __enter__(self) -> Watch:
        self._before = self._state()
        self._readings = [self._read()]
        self._pause(PAUSE)
        self._readings.append(self._read())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._readings.append(self._read())
        self._after = self._state()
        if kind is None:
            self._pause(PAUSE)
            self._readings.append(self._read())

    @property
    def found(self) -> MachineLoad:
        """Return what the machine did, after the block has ended."""
        first, start, end, last = self._readings
        before, after = self._before, self._after
        return MachineLoad(
            processors=before.processors,
            others_before=others(first, start),
            others_during=others(start, end),
            others_after=others(end, last),
            load_before=before.load_before,
            load_after=after.load_before,
            megahertz_before=before.megahertz_before,
            megahertz_after=after.megahertz_before,
            governor=before.governor,
            gpu_before=before.gpu_before,
            gpu_after=after.gpu_before,
        )

    def _state(self) -> MachineLoad:
        return MachineLoad(
            processors=os.cpu_count() or 1,
            load_before=load_average(),
            megahertz_before=megahertz(),
            governor=governor(),
            gpu_before=None if self._gpu is None else read_gpu(self._gpu),
        )
