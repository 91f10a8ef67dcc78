"""Run the shards of a stage in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

from ..errors import ArvgError, OutOfMemory, RecipeError
from ..runtime.sessions.processors import available_processors
from ..workspace.child_python import in_library, outside_current_directory

TaskT = TypeVar("TaskT")
ExecutorName = Literal["processes", "ray"]


@dataclass(frozen=True, slots=True)
class Execution:
    """Say how many `workers` run at once, each with `threads` of ONNX Runtime (0: all)."""

    executor: ExecutorName
    workers: int
    threads: int

    @classmethod
    def choose(cls, executor: ExecutorName, workers: int | None) -> Execution:
        """Choose one worker per processor without `workers`; they share the processors.

        Raises:
            RecipeError: fewer than one worker.
        """
        processors = available_processors()
        chosen = processors if workers is None else workers
        if chosen < 1:
            raise RecipeError(f"{chosen} workers", where="--workers", do="give 1 or more")
        return cls(executor, chosen, max(1, processors // chosen))


def run_tasks(
    execution: Execution,
    function: Callable[[TaskT], None],
    tasks: Sequence[TaskT],
    done: Callable[[int], None],
) -> None:
    """Run `function` on every task; `done` is called with how many are finished.

    What tasks read and write lies in files, which every worker must see under the same paths.

    Raises:
        ArvgError: what a task raised; the others are not waited for.
        OutOfMemory: a worker process was killed.
        ModuleNotFoundError: Ray is not installed.
    """
    run = on_ray if execution.executor == "ray" else in_processes
    run(execution, function, tasks, done)


def in_processes(
    execution: Execution,
    function: Callable[[TaskT], None],
    tasks: Sequence[TaskT],
    done: Callable[[int], None],
) -> None:
    here = os.getcwd()
    # Spawned: sessions and their threads do not survive a fork.
    with outside_current_directory():
        pool = ProcessPoolExecutor(
            execution.workers,
            mp_context=get_context("spawn"),
            initializer=os.chdir,
            initargs=(here,),
        )
    try:
        with outside_current_directory():
            futures = [pool.submit(function, task) for task in tasks]
        for count, future in enumerate(as_completed(futures), start=1):
            future.result()
            done(count)
    except BrokenProcessPool as error:
        raise OutOfMemory(
            "a worker process was ended from outside, as happens when memory runs out",
            do="give fewer --workers",
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def on_ray(
    execution: Execution,
    function: Callable[[TaskT], None],
    tasks: Sequence[TaskT],
    done: Callable[[int], None],
) -> None:
    here = os.getcwd()

    def run_there(task: TaskT) -> None:
        if os.path.isdir(here):  # on the nodes that have it
            os.chdir(here)
        function(task)

    with ray_session() as ray:
        remote: Any = ray.remote(num_cpus=execution.threads)(run_there)
        left = [remote.remote(task) for task in tasks]
        while left:
            ready, left = ray.wait(left)
            ray.get(ready)
            done(len(tasks) - len(left))


@contextmanager
def ray_session() -> Iterator[Any]:
    """Yield Ray, started here unless it runs already; a task's own error is raised as it was.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        with in_library():  # Ray puts the directory that is current now on its workers' path
            ray.init(log_to_driver=False, include_dashboard=False)
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ArvgError):
            raise error.cause from None
        raise
    finally:
        if started:
            ray.shutdown()
