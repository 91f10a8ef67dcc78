"""Count the processors that this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

# What a container of a runtime such as Docker or Kubernetes may use: "200000 100000" is two
# processors' time, "max 100000" all (Linux, control groups version 2).
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_processors(quota: Path = CPU_QUOTA) -> int:
    """Count the processors that this process may run on, within its container's quota; 1 or more.

    `taskset`, Slurm and `docker --cpuset-cpus` set the first, `docker --cpus` the second.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        count = len(os.sched_getaffinity(0))
    return max(1, int(min(count, quota_of(quota))))


def quota_of(path: Path) -> float:
    """Return how many processors' time the file grants, rounded up; infinity without a limit."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return math.inf if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or not of this form
        return math.inf


def session_threads(threads: int) -> int:
    """Return the threads a session is to have; 0 leaves it to ONNX Runtime.

    By itself ONNX Runtime takes every processor of the machine and binds its threads to them, also
    to those that this process may not use: threads that wait for each other then share one.
    """
    available = available_processors()
    if threads == 0 and available < (os.cpu_count() or 1):
        return available
    return threads
