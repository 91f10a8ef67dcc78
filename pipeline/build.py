"""Stage 4: Q/DQ graphs -> engine files, with the proof of what each site became."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BuildError
from ..graph.sites import load_sites
from ..numerics.scheme import Plan
from ..quantize.facts import OverflowTensor
from ..recipe.build import BuildOptions
from ..runtime.devices import this_device
from ..validate.metrics.latency import race
from ..workspace.facts import FP16, Exported
from ..workspace.files import decode_json
from ..workspace.manifest import Manifest
from ..workspace.stage import (
    PreparedStage,
    Reporter,
    StageResult,
    in_stage,
    package_versions,
    require_outputs,
)
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from ..engines.faster.facts import KeptIfFaster
    from ..engines.tensorrt.engine import EngineBuild
    from ..engines.tensorrt.targets import Target


def build_stage(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> list[StageResult]:
    """Build the engines of one backend; `name` fp16 builds the unquantized graphs in half.

    Returns one result per engine folder: for the CPU one, of TensorRT one per group of targets.
    """
    return [prepared.run() for prepared in prepare_builds(workspace, name, options, reporter)]


def prepare_builds(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> Iterator[PreparedStage]:
    """Yield what `build_stage` would do, a folder of engines at a time.

    Raises:
        BuildError: a target that is unknown or lacks a format, or no builder or kernels.
    """
    reporter = in_stage(reporter, "build")
    if options.on_cpu:
        yield prepare_cpu(workspace, name, options, reporter)
        return
    names = [name, FP16] if options.fp16 and name != FP16 else [name]
    for each in names:
        yield from prepare_tensorrt(workspace, each, options, reporter)


def source_graphs(workspace: Workspace, name: str) -> tuple[Path, Manifest, Plan | None]:
    """Return the folder, manifest and plan that an engine is built from."""
    if name == FP16:
        folder, manifest = require_outputs(workspace, "export", stage="export")
        return folder, manifest, None
    folder, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    plan = decode_json(folder / "plan.json", Plan, do="run `arvg-trt quantize` again")
    return folder, manifest, plan


def prepare_cpu(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> PreparedStage:
    """Prepare the engine of a quantization that a back end executes on the CPU.

    Raises:
        BuildError: there are no kernels for it, or it computes too far from the Q/DQ graphs.
    """
    from ..engines.cpu import CpuBuild

    source, manifest, plan = source_graphs(workspace, name)
    if plan is None:
        raise BuildError(
            f"{options.backend} has no fast FP16 kernels on the CPU",
            do="run the FP32 export, or build fp16 with --backend tensorrt_rtx",
        )
    calibration, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
    model = Exported.open(workspace)
    build = CpuBuild(model, source, plan, calibration, options, reporter)
    build.refuse()
    wanted = Manifest(
        stage="build",
        inputs=manifest.as_inputs() | model.manifest.as_inputs() | calibrated.as_inputs(),
        options={**build.manifest_options, "name": name},
        versions=package_versions(*build.packages),
    )
    return PreparedStage(
        workspace.folder("engines", name, options.cpu_folder),
        wanted,
        lambda folder: build.write(folder, race),
    )


@dataclass(frozen=True, slots=True)
class OpenBuild:
    """Hold what the engines of a back end are built from.

    `read` are the manifests of what they depend on; `risks` finds what stays in FP32, once.
    """

    build: EngineBuild
    read: tuple[Manifest, ...]
    risks: Callable[[], tuple[OverflowTensor, ...]]

    def groups(self) -> tuple[tuple[Target, ...], ...]:
        """Return the targets, those together that share a plan file.

        Raises:
            BuildError: one that is unknown or lacks a format, or there is no GPU to build for.
        """
        from ..engines.tensorrt.engine import target_groups

        build = self.build
        return target_groups(build.backend, build.options, build.plan, build.site_map)


def open_build(
    workspace: Workspace,
    name: str,
    options: BuildOptions,
    reporter: Reporter,
    faster: KeptIfFaster | None = None,
) -> OpenBuild:
    """Open what TensorRT engines are built from, whether or not a builder is there.

    `faster` says which sites keep their rounded inputs, where that was decided before.

    Raises:
        BuildError: a size that the model does not take.
        WorkspaceError: an earlier stage was not run, or its folder was changed.
    """
    from ..engines.faster.predicted import predict_faster
    from ..engines.tensorrt.engine import EngineBuild, overflow_risks
    from ..engines.tensorrt.profiles import graph_profiles
    from ..quantize.overflow import find_calibration

    backend = options.backend
    assert backend == "tensorrt" or backend == "tensorrt_rtx"
    source, manifest, plan = source_graphs(workspace, name)
    site_map = load_sites(workspace.folder("export"))
    model = Exported.open(workspace)
    profiles = graph_profiles(workspace, model.manifest, options)
    timings = workspace.folder("engines") if backend == "tensorrt" else None
    if plan is not None and faster is None:
        faster = predict_faster(workspace, options, plan, site_map)
    if faster and not faster.is_quantized:
        source, manifest, plan = source_graphs(workspace, FP16)
    build = EngineBuild(
        source,
        backend,
        options,
        plan,
        site_map,
        profiles,
        timings,
        faster=faster,
        export=model.folder,
    )
    watched = plan is None and options.half == "float16"
    calibrated = find_calibration(workspace, reporter) if watched else None
    read = [m for m in (manifest, model.manifest, calibrated) if m is not None]
    if model.kind == "custom":  # whose shapes are those of a sample
        read.append(workspace.manifest("calibrate", stage="calibrate"))

    @cache
    def risks() -> tuple[OverflowTensor, ...]:
        found = overflow_risks(workspace, plan, manifest, options, calibrated, reporter)
        return tuple(found)

    return OpenBuild(build, tuple(read), risks)


def prepare_tensorrt(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> Iterator[PreparedStage]:
    """Prepare engine files for the targets, those that share one together.

    Raises:
        BuildError: a target that is unknown or lacks a format, a graph that does not compile, or a
            site that is not what was planned.
        OutOfMemory: there is less memory than the builder takes.
        WorkspaceError: there is less disk than the engines take.
    """
    from ..engines.groups import prepare_groups

    opened = open_build(workspace, name, options, reporter)
    yield from prepare_groups(
        opened.build,
        name,
        {k: v for each in opened.read for k, v in each.as_inputs().items()},
        workspace.folder("engines", name),
        reporter,
        gpu=gpu_name(),
        risks=opened.risks,
    )


def gpu_name() -> str:
    """Return the GPU that TensorRT times its kernels on, the first of this machine; "" for none."""
    return next((gpu.name for gpu in this_device().gpus), "")
