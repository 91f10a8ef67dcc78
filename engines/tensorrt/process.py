"""Compile an engine in a process of its own, whose addresses are the same every time.

TensorRT for RTX lists the outputs of a plan in an order by address: graphs with several got other
bytes now and then (265 of them; kernels are equal). So the process has no address randomization,
and compiles in a thread whose heap has no holes: what was allocated before, down to the number of
environment variables, else decides where outputs lie. Where the system forbids that, as the seccomp
profile of a container does, one order in thirty was still another: the plan is built again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from ...runtime.trt_compat import Backend, load_builder
from ...workspace.worker_process import run_isolated, serve_worker
from .build import BuildResult, Profiles, Shape, build_engine
from .targets import Target

TRIES = 5
ADDR_NO_RANDOMIZE = 0x0040000
NO_CHANGE = 0xFFFFFFFF
TRIED = "ARVG_TRT_FIXED_ADDRESSES"  # a process that has started itself anew does so no further
LARGE, PAGE, STEP = 2**17, 4096, 16  # above LARGE, blocks are the system's; STEP is malloc's


class BuildTask(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the arguments of `build_engine`."""

    graph: str
    output: str
    backend: Backend
    targets: tuple[Target, ...]
    profiles: dict[str, tuple[Shape, Shape, Shape]]


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the result of `build_engine`, and whether the process had fixed addresses."""

    result: BuildResult
    fixed: bool


def compile_engine(
    graph: Path, output: Path, *, backend: Backend, targets: Sequence[Target], profiles: Profiles
) -> BuildResult:
    """Run `build_engine` in its own process, with the same bytes for the same input.

    Raises:
        BuildError: whatever `build_engine` raises.
        OutOfMemory: the system ended the process.
    """
    task = BuildTask(
        graph=str(graph.absolute()),
        output=str(output.absolute()),
        backend=backend,
        targets=tuple(targets),
        profiles=dict(profiles),
    )
    before = None
    for _ in range(TRIES):
        made = run_isolated(__name__, task, Compiled)
        # An order that comes twice is the graph's usual one.
        if made.fixed or made.result.in_order or made.result.table == before:
            break
        before = made.result.table
    return made.result


def compile_here(task: BuildTask, *, fixed: bool) -> Compiled:
    graph = Path(task.graph)
    os.chdir(graph.parent)  # so that no length of a path moves what is allocated
    load_builder(task.backend)

    def work() -> BuildResult:
        fill_heap()
        return build_engine(
            Path(graph.name),
            Path(task.output),
            backend=task.backend,
            targets=task.targets,
            profiles=task.profiles,
        )

    with ThreadPoolExecutor(1) as pool:
        return Compiled(result=pool.submit(work).result(), fixed=fixed)


def fill_heap() -> None:
    """Allocate all free blocks of this thread's heap, so that later ones follow one another."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    sizes = [(size, 8) for size in range(LARGE - PAGE, PAGE, -PAGE)]
    sizes += [(size, 64) for size in range(PAGE, 0, -STEP)]
    for size, count in sizes:
        for _ in range(count):
            malloc(ctypes.c_size_t(size))


def fix_addresses() -> bool:
    """Restart this process without address randomization; return whether it has none."""
    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None, use_errno=True).personality
    now = personality(ctypes.c_ulong(NO_CHANGE))
    fixed = now != -1 and bool(now & ADDR_NO_RANDOMIZE)
    if fixed or now == -1 or TRIED in os.environ:
        return fixed
    if personality(ctypes.c_ulong(now | ADDR_NO_RANDOMIZE)) == -1:
        return False
    # Hashes of names decide what Python allocates.
    os.execve(sys.executable, sys.orig_argv, os.environ | {TRIED: "1", "PYTHONHASHSEED": "0"})


if __name__ == "__main__":
    serve_worker(BuildTask, partial(compile_here, fixed=fix_addresses()))
