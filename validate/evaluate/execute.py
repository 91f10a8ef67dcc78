"""Run shards in processes of this machine or in actors of a Ray cluster, whatever is killed.

A shard is a file that is whole or absent, so what a killed worker had begun is made again: its pool
is replaced, and what is missing on the disk is handed out anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from threading import Thread
from typing import Any

from ...calibrate.executors import Execution, ray_session
from ...errors import GenerationError, OutOfMemory
from ...workspace.child_python import outside_current_directory
from .shards import remove_leftovers
from .work import ShardMaker, ShardTask, make_shard

# Pools that die without a shard in between, as they do when memory runs out each time.
MOST_DEATHS = 3

Done = Callable[[int], None]  # of a shard's number
Warn = Callable[[str], None]


def run_shards(execution: Execution, tasks: Sequence[ShardTask], done: Done, warn: Warn) -> None:
    """Make every shard; `done` is called with each number, `warn` with a line where workers died.

    Raises:
        ArvgError: what a shard raised; shards that are written stay.
        OutOfMemory: workers were killed three times with no shard in between.
        ModuleNotFoundError: Ray is not installed.
    """
    run = on_ray if execution.executor == "ray" else in_processes
    run(execution, tasks, done, warn)
    for output in {task.place.output for task in tasks}:
        remove_leftovers(output)


def in_processes(execution: Execution, tasks: Sequence[ShardTask], done: Done, warn: Warn) -> None:
    left = {task.shard: task for task in tasks}
    deaths = 0
    while left:
        before = len(left)
        try:
            run_pool(execution, left, done)
        except BrokenProcessPool as error:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths >= MOST_DEATHS:
                raise killed() from error
            warn(f"a worker process was ended from outside; {len(left)} shards are left")


def run_pool(execution: Execution, left: dict[int, ShardTask], done: Done) -> None:
    """Make shards in one pool; those that are made leave `left`, whatever happens after."""
    workers = min(execution.workers, len(left))
    here = os.getcwd()
    # Spawned: sessions and their threads do not survive a fork.
    with outside_current_directory():
        pool = ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),
            initializer=begin,
            initargs=(here, end_with_parent),
        )
    try:
        with outside_current_directory():
            pending = {pool.submit(make_shard, task) for task in left.values()}
        while pending:
            ready, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in sorted(ready, key=lambda f: f.exception() is not None):
                shard = future.result()
                del left[shard]
                done(shard)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def begin(directory: str, watch: Callable[[], None]) -> None:
    """Work in the directory of the process that started this one, and `watch` that it lives."""
    os.chdir(directory)
    watch()


def end_with_parent() -> None:
    """End this worker as soon as the process that started it is gone, even if that was killed.

    A pool's workers hold both ends of their queue, and would wait in it for ever.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    Thread(target=watch, name="parent", daemon=True).start()


def on_ray(execution: Execution, tasks: Sequence[ShardTask], done: Done, warn: Warn) -> None:
    with ray_session() as ray:
        run_actors(ray, execution, tasks, done, warn)


def run_actors(
    ray: Any, execution: Execution, tasks: Sequence[ShardTask], done: Done, warn: Warn
) -> None:
    """Give every actor one shard at a time; a dead actor's shard goes to its successor."""
    actor: Any = ray.remote(num_cpus=execution.threads, max_restarts=0)(ShardMaker)
    queue = list(reversed(tasks))
    running: dict[Any, tuple[Any, ShardTask]] = {}
    deaths = 0

    def start(maker: Any) -> None:
        if queue:
            task = queue.pop()
            running[maker.make.remote(task)] = (maker, task)

    for task in tasks[: execution.workers]:
        start(actor.remote(task.place))
    while running:
        (ready, *_), _ = ray.wait(list(running))
        maker, task = running.pop(ready)
        try:
            done(ray.get(ready))
            deaths = 0
        except ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise GenerationError(
                    f"no worker starts: {reason[-1]}",
                    do="check that every node has the package, the model and the network",
                ) from error
            deaths += 1
            if deaths >= MOST_DEATHS * execution.workers:
                raise killed() from error
            warn(f"an actor ended; shard {task.shard} is made again")
            queue.append(task)
            with suppress(ray.exceptions.RayError):
                ray.kill(maker)
            maker = actor.remote(task.place)
        start(maker)


def killed() -> OutOfMemory:
    return OutOfMemory(
        "workers were ended from outside again and again, as happens when memory runs out",
        do="give fewer --workers or a smaller --batch-size; what is written is gone on with",
    )
