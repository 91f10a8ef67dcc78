"""Compile an engine in a process of its own, which frees the builder's memory and its addresses.

Where the system forbids fixed addresses, as the seccomp profile of a container does, one plan in
thirty had its outputs in another order: it is built again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from ...errors import BuildError
from ...runtime.trt_compat import Backend
from ...workspace.worker_process import WorkerCrash, run_isolated, serve_worker
from .addresses import fill_heap, fix_addresses
from .build import BuildResult, Profiles, Shape, TimingCache, build_engine, load_polygraphy
from .targets import Target

TRIES = 5


class BuildTask(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the arguments of `build_engine`."""

    graph: str
    output: str
    backend: Backend
    targets: tuple[Target, ...]
    profiles: dict[str, tuple[Shape, Shape, Shape]]
    timing_cache: TimingCache | None


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the result of `build_engine`, and whether the process had fixed addresses."""

    result: BuildResult
    fixed: bool


def compile_engine(
    graph: Path,
    output: Path,
    *,
    backend: Backend,
    targets: Sequence[Target],
    profiles: Profiles,
    timing_cache: TimingCache | None = None,
) -> BuildResult:
    """Run `build_engine` in its own process, with the same bytes for the same input.

    Raises:
        BuildError: whatever `build_engine` raises, or the builder crashed.
        OutOfMemory: the system ended the process.
    """
    task = BuildTask(
        graph=str(graph.absolute()),
        output=str(output.absolute()),
        backend=backend,
        targets=tuple(targets),
        profiles=dict(profiles),
        timing_cache=timing_cache,
    )
    before = None
    for _ in range(TRIES):
        try:
            made = run_isolated(__name__, task, Compiled)
        except WorkerCrash as crash:
            raise BuildError(
                f"the builder crashed ({crash.sign})",
                where=str(graph),
                do="`arvg-trt diagnose build-failure` finds the part that it crashes on",
            ) from crash
        # An order that comes twice is the graph's usual one.
        if made.fixed or made.result.in_order or made.result.table == before:
            break
        before = made.result.table
    return made.result


def compile_here(task: BuildTask, *, fixed: bool) -> Compiled:
    graph = Path(task.graph)
    os.chdir(graph.parent)  # so that no length of a path moves what is allocated
    load_polygraphy(task.backend)

    def work() -> BuildResult:
        fill_heap()
        return build_engine(
            Path(graph.name),
            Path(task.output),
            backend=task.backend,
            targets=task.targets,
            profiles=task.profiles,
            timing_cache=task.timing_cache,
        )

    with ThreadPoolExecutor(1) as pool:
        return Compiled(result=pool.submit(work).result(), fixed=fixed)


if __name__ == "__main__":
    serve_worker(BuildTask, partial(compile_here, fixed=fix_addresses()))
