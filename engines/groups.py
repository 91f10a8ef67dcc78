"""Build the engines of TensorRT for groups of targets, a folder each, from a workspace or a kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from ..quantize.facts import OverflowTensor
from ..runtime.sessions.placement import unopened_text
from ..runtime.trt_compat import version
from ..workspace.files import recover_folder
from ..workspace.manifest import Manifest, is_up_to_date
from ..workspace.stage import PreparedStage, Reporter, package_versions
from .facts import BuildFacts
from .faster.engine_build import decided_build
from .formats import required_formats
from .tensorrt.engine import EngineBuild, folder_name, target_groups
from .tensorrt.preflight import estimate, require_room
from .tensorrt.targets import Target, half_instead, require_local_gpu

# Options that change no engine: where timings of kernels are kept changes which of several equal
# kernels TensorRT takes at most.
NO_KEY = ("timing_cache",)
Risks = Callable[[], Sequence[OverflowTensor]]


def prepare_groups(
    build: EngineBuild,
    name: str,
    inputs: Mapping[str, str],
    place: Path,
    reporter: Reporter,
    *,
    gpu: str = "",
    risks: Risks | None = None,
    takes_unproved: bool = False,
) -> Iterator[PreparedStage]:
    """Prepare engines of the quantization `name` below `place`, a folder for a group of targets.

    `inputs` are digests of what they are built from, `risks` finds what stays in FP32 where that
    is not part of the graphs already. TensorRT times its kernels on `gpu`. With `takes_unproved`
    engines that were built with `--allow-unproved` are up to date, too.

    Raises:
        BuildError: a target that is unknown or lacks a format, a graph that does not compile, or a
            site that is not what was planned.
        OutOfMemory: there is less memory than the builder takes.
        WorkspaceError: there is less disk than the engines take.
    """
    groups = target_groups(build.backend, build.options, build.plan, build.site_map)
    if build.backend == "tensorrt":
        require_local_gpu([target for group in groups for target in group])
    of_gpu = gpu if build.backend == "tensorrt" else ""
    if build.backend == "tensorrt_rtx":
        warning = unopened_text(target.sm for group in groups for target in group)
        if warning:
            reporter.warn(warning)
    ops = {site.name: site.op for site in build.site_map.sites}
    required = {} if build.plan is None else required_formats(build.plan, ops)
    for group in groups:
        in_half = half_instead(required, group)
        if in_half:
            reporter.warn(in_half)

    @cache
    def prepare() -> None:
        needed = estimate([build.source / f"{graph}.onnx" for graph in build.profiles], len(groups))
        require_room(needed, place)
        if needed.is_large:
            reporter.say(f"building {name} takes {needed}")

    for group in groups:
        wanted = wanted_engines(build, name, inputs, group, of_gpu)
        folder = place / folder_name(build.backend, build.options, group)
        if takes_unproved:
            recover_folder(folder)
            unproved = replaced(wanted, allow_unproved=True)
            wanted = unproved if is_up_to_date(folder, unproved) else wanted

        def work(folder: Path, group: Sequence[Target] = group) -> BuildFacts:
            prepare()
            wide = () if risks is None else risks()
            listed = build.plan is None and risks is not None
            with decided_build(build, folder) as own:
                engines = own.write(group, folder, wide, reporter)
            return BuildFacts(
                engines=engines,
                gpu=of_gpu or msgspec.UNSET,
                targets=tuple(target.sm for target in group),
                fp32_tensors=tuple(wide) if listed else msgspec.UNSET,
                faster=build.faster or msgspec.UNSET,
            )

        yield PreparedStage(folder, wanted, work)


def wanted_engines(
    build: EngineBuild, name: str, inputs: Mapping[str, str], group: Sequence[Target], gpu: str
) -> Manifest:
    """Return the manifest of the engines of a group, before they are built.

    TensorRT's are for the `gpu` that they were timed on: a workspace may move to another one of the
    same compute capability.
    """
    options = msgspec.to_builtins(build.options)
    for key in NO_KEY:
        del options[key]
    if build.faster is None:
        del options["keep_if_faster"]
    options |= {"name": name, "targets": [target.sm for target in group]}
    if gpu:
        options["gpu"] = gpu
    builder = {build.backend: version(build.backend)}
    return Manifest(
        stage="build",
        inputs=dict(inputs),
        options=options,
        versions=package_versions("onnx", "onnx-ir", "polygraphy") | builder,
    )


def replaced(manifest: Manifest, **options: object) -> Manifest:
    """Return a manifest with other options."""
    return msgspec.structs.replace(manifest, options={**manifest.options, **options})
