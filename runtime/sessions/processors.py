"""Find how many processors this process may use, and what they are able to do."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# What a container of a runtime such as Docker or Kubernetes may use: "200000 100000" is two
# processors' time, "max 100000" all (Linux, control groups version 2).
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPU_INFO = Path("/proc/cpuinfo")
EXACT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})  # flags of Linux


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


def cpu_fields(path: Path = CPU_INFO) -> dict[str, str]:
    """Return what Linux tells of the first processor, by lower-case names; elsewhere nothing."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def processor_name(path: Path = CPU_INFO) -> str:
    """Return the processor's name that Linux tells; elsewhere what the platform says."""
    return cpu_fields(path).get("model name") or platform.processor() or platform.machine()


def cpu_flags(fields: Mapping[str, str]) -> frozenset[str]:
    """Return the instruction sets among `cpu_fields`, under Linux's names."""
    return frozenset((fields.get("flags") or fields.get("features") or "").split())


@cache
def may_saturate(path: Path = CPU_INFO) -> bool:
    """Return whether products of uint8 and int8 may saturate in 16 bits: without VNNI they do.

    A processor whose flags are not known may.
    """
    return not cpu_flags(cpu_fields(path)) & EXACT_PRODUCTS
