"""Read what the processors do, as Linux tells it: how busy all of them are, and their clocks.

Elsewhere, and where a file cannot be read, a figure is None: nothing is guessed.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

STAT, CPU_INFO = Path("/proc/stat"), Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# Columns of the line "cpu" in which a processor does not work: idle, and waiting for a disk.
WAITING = (3, 4)
COUNTED = 8  # user to steal; guests are in the first two already
_CLOCK = re.compile(r"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold seconds: of a clock, of work by all processors, and of work by this process alone."""

    at: float
    busy: float
    own: float


def read_processors(path: Path = STAT) -> Reading | None:
    """Return the seconds up to now; None where the system does not tell them."""
    try:
        first = path.read_text().splitlines()[0].split()
        ticks = [int(word) for word in first[1 : COUNTED + 1]]
        each = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    if first[0] != "cpu" or len(ticks) < COUNTED or each <= 0:
        return None
    worked = sum(ticks) - sum(ticks[k] for k in WAITING)
    return Reading(at=time.monotonic(), busy=worked / each, own=time.process_time())


def others(first: Reading | None, last: Reading | None) -> float | None:
    """Return how many processors other processes kept busy, on average between two readings."""
    if first is None or last is None or last.at <= first.at:
        return None
    work = (last.busy - first.busy) - (last.own - first.own)
    return max(0.0, work / (last.at - first.at))  # ticks are coarse: a little less than nothing


def megahertz(path: Path = CPU_INFO) -> float | None:
    """Return the mean clock of the processors now, in MHz; None where it is not told."""
    try:
        clocks = [float(text) for text in _CLOCK.findall(path.read_text())]
    except (OSError, ValueError):
        return None
    return statistics.fmean(clocks) if clocks else None


def governor(path: Path = GOVERNOR) -> str | None:
    """Return the rule by which Linux sets the clocks, such as "performance"; None if not told."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def load_average() -> float | None:
    """Return the mean number of processes that ran or waited in the last minute, ours too."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
