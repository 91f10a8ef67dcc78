"""Build the engines of a kit on the device that runs them, once, and keep them in the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...errors import BuildError
from ...runtime.bundle.cache import lock_of, locked, remove_old
from ...runtime.devices import Gpu
from ...runtime.trt_compat import Backend, version
from ...workspace.files import digest_files, own_folder, user_cache
from ...workspace.manifest import Manifest
from ...workspace.stage import Reporter, StageResult, package_versions, run_stage
from ..facts import BuildFacts
from ..tensorrt.engine import folder_name, target_groups
from ..tensorrt.targets import Target
from .kit import read_kit


def build_here(kit: Path, gpu: Gpu, backend: Backend, reporter: Reporter) -> Path:
    """Return the cache's folder of the engines of an unpacked kit for a GPU of this machine.

    They are built unless they are there already. What nobody opened for a month goes before.

    Raises:
        BuildError: no builder, or a graph that does not compile.
    """
    place = build_place(kit, backend, gpu)
    with locked(lock_of(place)):
        if not place.exists():
            remove_old(place.parent)
            reporter.say(f"building engines for {gpu.name}, once: {place}")
        (result,) = build_kit(kit, backend, (gpu.sm,), place, reporter, gpu=gpu.name)
        os.utime(place)
    return result.folder


def build_place(kit: Path, backend: Backend, gpu: Gpu | None) -> Path:
    """Return where the cache has the engines of an unpacked kit for a GPU.

    Raises:
        BuildError: no builder, or no GPU.
    """
    release = f"{backend}-{version(backend)}"
    if gpu is None:
        raise BuildError("there is no GPU to build for", do="name a workspace and a --target")
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower())
    return own_folder(user_cache() / "engines") / f"{kit.parent.name}-{release}-{name}"


def build_kit(
    kit: Path,
    backend: Backend,
    targets: tuple[str, ...],
    place: Path,
    reporter: Reporter,
    *,
    gpu: str = "",
    allow_unproved: bool = False,
) -> list[StageResult]:
    """Build the engines of an unpacked kit below `place`, a folder for each group of targets.

    `gpu` is the one that TensorRT times its kernels on.

    Raises:
        BuildError: a target that is unknown or lacks a format, a graph that does not compile, or a
            site that is not what was planned.
    """
    known, build = read_kit(kit, backend, targets, allow_unproved=allow_unproved)
    files = digest_files(kit, (path for path in kit.iterdir() if path.is_file()))
    results = []
    for group in target_groups(backend, build.options, build.plan, build.site_map):
        names = tuple(target.sm for target in group)
        wanted = Manifest(
            stage="build",
            inputs={f"kit/{name}": digest for name, digest in files.items()},
            options={
                **msgspec.to_builtins(build.options),
                "name": known.name,
                "targets": list(names),
            },
            versions=package_versions("onnx", "onnx-ir") | {backend: version(backend)},
        )

        def work(
            folder: Path, group: Sequence[Target] = group, names: tuple[str, ...] = names
        ) -> BuildFacts:
            return BuildFacts(
                engines=build.write(group, folder, (), reporter),
                gpu=gpu or msgspec.UNSET,
                targets=names,
            )

        results.append(run_stage(place / folder_name(backend, build.options, group), wanted, work))
    return results
