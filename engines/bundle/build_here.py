"""Build the engines of a kit on the device that runs them, once, and keep them in the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import BuildError
from ...runtime.bundle.cache import lock_of, remove_old
from ...runtime.bundle.failures import forget
from ...runtime.devices import Gpu
from ...runtime.trt_compat import Backend, version
from ...workspace.files import digest_files, own_folder, user_cache
from ...workspace.locks import locked
from ...workspace.stage import Reporter, StageResult, in_stage
from ..groups import prepare_groups
from ..tensorrt.targets import resolve_target
from .kit import read_kit


def build_here(kit: Path, gpu: Gpu, backend: Backend, reporter: Reporter) -> Path:
    """Return the cache's folder of the engines of an unpacked kit for a GPU of this machine.

    They are built unless they are there already, were it with `--allow-unproved`.

    Raises:
        BuildError: no builder, or a graph that does not compile.
    """
    (result,) = build_cached(kit, backend, (), gpu, reporter, takes_unproved=True)
    return result.folder


def build_cached(
    kit: Path,
    backend: Backend,
    targets: Sequence[str],
    gpu: Gpu,
    reporter: Reporter,
    *,
    allow_unproved: bool = False,
    takes_unproved: bool = False,
) -> list[StageResult]:
    """Build the engines of an unpacked kit for a GPU of this machine into the cache, under a lock.

    What nobody opened for a month goes before.

    Raises:
        BuildError: a target that is not this GPU, no builder, or a graph that does not compile.
    """
    for target in targets:
        if resolve_target(target, backend).compute_capability != gpu.compute_capability:
            what = f"WORKSPACE is missing: the cache takes engines for {gpu.name}, {gpu.sm}, alone"
            raise BuildError(what, where=f"--target {target}", do="name a new folder")
    reporter = in_stage(reporter, "build")
    place = build_place(kit, backend, gpu)
    with locked(lock_of(place)):
        if not place.exists():
            remove_old(place.parent)
            reporter.say(f"building engines for {gpu.name}, once: {place}")
        made = build_kit(
            kit,
            backend,
            (gpu.sm,),
            place,
            reporter,
            gpu=gpu.name,
            allow_unproved=allow_unproved,
            takes_unproved=takes_unproved,
        )
        os.utime(place)
    forget(kit)
    return made


def build_place(kit: Path, backend: Backend, gpu: Gpu) -> Path:
    """Return where the cache has the engines of an unpacked kit for a GPU.

    Raises:
        BuildError: no builder.
    """
    release = f"{backend}-{version(backend)}"
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower())
    return own_folder(user_cache() / "engines") / f"{kit.parent.name}-{release}-{name}"


def build_kit(
    kit: Path,
    backend: Backend,
    targets: Sequence[str],
    place: Path,
    reporter: Reporter,
    *,
    gpu: str = "",
    allow_unproved: bool = False,
    takes_unproved: bool = False,
) -> list[StageResult]:
    """Build the engines of an unpacked kit below `place`, and keep timings of kernels beside it.

    `gpu` is the one that TensorRT times its kernels on.

    Raises:
        BuildError: a target that is unknown or lacks a format, a graph that does not compile, or a
            site that is not what was planned.
        OutOfMemory: there is less memory than the builder takes.
        WorkspaceError: there is less disk than the engines take.
    """
    timings = place.parent
    known, build = read_kit(kit, backend, targets, timings=timings, allow_unproved=allow_unproved)
    files = digest_files(kit, (path for path in kit.iterdir() if path.is_file()))
    stages = prepare_groups(
        build,
        known.name,
        {f"kit/{name}": digest for name, digest in files.items()},
        place,
        reporter,
        gpu=gpu,
        takes_unproved=takes_unproved,
    )
    return [stage.run() for stage in stages]
