"""Stage 4: Q/DQ graphs -> engine files, with the proof of what each site became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..engines.facts import EngineRow, SiteException
from ..engines.tensorrt.half_precision_files import write_half_precision
from ..engines.tensorrt.profiles import Profiles, graph_profiles
from ..errors import BuildError
from ..graph.sites import load_sites
from ..numerics.scheme import Plan, SitePlan
from ..quantize.facts import OverflowTensor, QuantizationFacts
from ..quantize.overflow import find_calibration, unquantized_overflow_tensors
from ..recipe.options import BuildOptions
from ..runtime.trt_compat import Backend
from ..workspace.facts import FP16, facts, kind_of
from ..workspace.files import decode_json, encode_json
from ..workspace.manifest import Manifest
from ..workspace.stage import Reporter, StageResult, package_versions, require_outputs, run_stage
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from ..engines.tensorrt.targets import Format


def build_stage(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> list[StageResult]:
    """Build the engines of one backend; `name` fp16 builds the unquantized graphs in half.

    Returns one result per engine folder: onnxruntime has one, TensorRT one per group of targets.
    """
    if options.backend == "onnxruntime":
        return [build_onnxruntime(workspace, name, reporter)]
    names = [name, FP16] if options.fp16 and name != FP16 else [name]
    return [r for each in names for r in build_tensorrt(workspace, each, options, reporter)]


def source_graphs(workspace: Workspace, name: str) -> tuple[Path, Manifest, Plan | None]:
    """Folder, manifest and plan that an engine is built from."""
    if name == FP16:
        folder, manifest = require_outputs(workspace, "export", stage="export")
        return folder, manifest, None
    folder, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    plan = decode_json(folder / "plan.json", Plan, do="run `arvg-trt quantize` again")
    return folder, manifest, plan


def build_onnxruntime(workspace: Workspace, name: str, reporter: Reporter) -> StageResult:
    from ..engines.onnxruntime.build import build_engine
    from ..engines.onnxruntime.generator import build_generator_engine

    if name == FP16:
        raise BuildError(
            "ONNX Runtime has no fast FP16 kernels on the CPU",
            do="run the FP32 export, or build fp16 with --backend tensorrt_rtx",
        )
    source, manifest, plan = source_graphs(workspace, name)
    fp8 = [s.name for s in plan.sites if is_fp8(s)] if plan else []
    if fp8:
        raise BuildError(
            f"{fp8[0]} wants fp8, which ONNX Runtime lacks on the CPU, and {len(fp8) - 1} more "
            "sites; nearest that works: int8"
        )
    calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
    export, exported = require_outputs(workspace, "export", stage="export")
    wanted = Manifest(
        stage="build",
        inputs=manifest.as_inputs() | exported.as_inputs() | calibrated.as_inputs(),
        options={"backend": "onnxruntime", "name": name},
        versions=package_versions("onnxruntime", "onnx-ir"),
    )

    def work(folder: Path) -> dict[str, Any]:
        places = (source, export, calibrate / "samples", calibrate / "statistics.safetensors")
        if kind_of(exported) == "generator":
            rows = build_generator_engine(*places, folder, progress=reporter.progress)
        else:
            graphs = load_sites(export).graphs
            rows = build_engine(*places, folder, graphs, progress=reporter.progress)
        return {"engines": rows}

    return run_stage(workspace.folder("engines", name, "onnxruntime"), wanted, work)


def build_tensorrt(
    workspace: Workspace, name: str, options: BuildOptions, reporter: Reporter
) -> list[StageResult]:
    from ..engines.tensorrt.targets import Target, check_formats, group_targets, resolve_target
    from ..runtime.trt_compat import version

    backend = options.backend
    assert backend != "onnxruntime"
    source, manifest, plan = source_graphs(workspace, name)
    targets = [resolve_target(t, backend) for t in options.targets or local_gpu(backend)]
    ops = {site.name: site.op for site in load_sites(workspace.folder("export")).sites}
    required = {} if plan is None else required_formats(plan, ops)
    if options.half == "bfloat16":
        required["what is not quantized"] = "bf16"
    # An INT8 convolution on sm75 is not refused: its targets get a plan of their own, in FP16.
    check_formats({s: f for s, f in required.items() if f != "int8_conv"}, targets)
    groups = group_targets(targets, has_int8_conv="int8_conv" in required.values())
    _, exported = require_outputs(workspace, "export", stage="export")
    shapes = graph_profiles(workspace, exported, options)
    builder = version(backend)
    watched = plan is None and options.half == "float16"
    calibrated = find_calibration(workspace, reporter) if watched else None
    read = [m for m in (manifest, exported, calibrated) if m is not None]
    if kind_of(exported) == "custom":  # whose shapes are those of a sample
        read.append(workspace.manifest("calibrate", stage="calibrate"))
    results = []

    @cache
    def wide() -> Sequence[OverflowTensor]:
        if options.half == "bfloat16":
            return ()  # it ends where float32 does
        if calibrated is not None:
            return unquantized_overflow_tensors(workspace, reporter)
        return facts(manifest, QuantizationFacts).fp32_tensors

    for group in groups:
        label = "-".join([engine_label(options), *(t.sm for t in group)])
        wanted = Manifest(
            stage="build",
            inputs={k: v for each in read for k, v in each.as_inputs().items()},
            options={
                **msgspec.to_builtins(options),
                "name": name,
                "targets": [t.sm for t in group],
            },
            versions=package_versions("onnx", "onnx-ir") | {backend: builder},
        )

        def work(
            folder: Path, group: Sequence[Target] = group, label: str = label
        ) -> dict[str, Any]:
            kept = wide()
            rows = [
                build_graph(
                    workspace, source, graph, folder, plan, options, group, shapes[graph], kept
                )
                for graph in progress_over(tuple(shapes), reporter, label)
            ]
            told = {"fp32_tensors": kept} if plan is None else {}
            return {"engines": rows, "targets": [t.sm for t in group], **told}

        results.append(run_stage(workspace.folder("engines", name, label), wanted, work))
    return results


def engine_label(options: BuildOptions) -> str:
    """What engine folders are called, before their targets: `rtx`, `rtx-bf16`."""
    backend = options.backend.removeprefix("tensorrt_")
    return backend if options.half == "float16" else f"{backend}-bf16"


def local_gpu(backend: Backend) -> list[str]:
    """TensorRT builds for the GPU of this machine when no target is named.

    Raises:
        BuildError: this machine has none.
    """
    from ..runtime.trt_compat import device_compute_capability, load_builder

    load_builder(backend)
    found = device_compute_capability()
    if found is None:
        raise BuildError(
            "TensorRT builds for the GPU of this machine, which has none",
            do="build on the device, or use the tensorrt_rtx backend",
        )
    return [f"sm{found}"]


def progress_over(graphs: Sequence[str], reporter: Reporter, label: str) -> Any:
    for k, graph in enumerate(graphs):
        reporter.progress(f"compiling for {label}", k, len(graphs))
        yield graph
    reporter.progress(f"compiling for {label}", len(graphs), len(graphs))


def build_graph(
    workspace: Workspace,
    source: Path,
    graph: str,
    folder: Path,
    plan: Plan | None,
    options: BuildOptions,
    group: Sequence[Any],
    shapes: Profiles,
    wide: Sequence[OverflowTensor],
) -> EngineRow:
    """Build the FP16 copy of one graph and its engine; return its row for reports.

    What makes or reads a tensor of `wide` stays in FP32.
    """
    from ..engines.tensorrt.inspect import verify_sites
    from ..engines.tensorrt.process import compile_engine

    assert options.backend != "onnxruntime"
    own_sites = load_sites(workspace.folder("export")).of_graph(graph)
    twin_path = write_half_precision(source, graph, own_sites, folder, wide, options.half)
    sites = {site.node: site.name for site in own_sites}
    entries = {entry.name: entry for entry in plan.sites} if plan else {}
    planned = [entries[name] for name in sites.values() if name in entries]
    formats = {e.name: "fp8" if is_fp8(e) else "int8" for e in planned if e.activation}
    wanted = {node: formats[name] for node, name in sites.items() if name in formats}
    result = compile_engine(
        twin_path,
        folder / f"{graph}.engine",
        backend=options.backend,
        targets=group,
        profiles=shapes,
    )
    proved, missing = verify_sites(result.layers, wanted)  # type: ignore[arg-type]
    (folder / f"{graph}.layers.json").write_bytes(encode_json(result.layers))
    lacking = [t.sm for t in group if not t.supports("int8_conv")]
    note = f" ({', '.join(lacking)} has no INT8 convolution kernel)" if lacking else ""
    return EngineRow(
        backend=result.builder_version,
        target=" ".join(t.sm for t in group),
        precision=precision_text(planned, options.half),
        graph=graph,
        bytes=result.bytes,
        build_seconds=result.seconds,
        int8_sites_planned=len(wanted),
        int8_sites_proved=len(proved) if result.layers else None,
        exceptions=tuple(
            SiteException(site=sites[s], reason=reason + note) for s, reason in missing
        ),
        status=result.status,
    )


def is_fp8(entry: SitePlan) -> bool:
    return entry.activation is not None and entry.activation.grid == "fp8"


def required_formats(plan: Plan, ops: Mapping[str, str]) -> dict[str, Format]:
    """What a target must have, by site; weights alone only where the graph holds their type."""
    found: dict[str, Format] = {}
    for entry in plan.sites:
        if is_fp8(entry):
            found[entry.name] = "fp8"
        elif entry.weight is not None and entry.weight.granularity == "per_block":
            found[entry.name] = "int4"
        elif entry.activation is not None:
            found[entry.name] = "int8_conv" if ops[entry.name] == "Conv" else "int8_gemm"
    return found


def precision_text(planned: Sequence[SitePlan], half: str) -> str:
    """What a graph computes in, e.g. `INT8 + FP16`; `W4` are weights of 4 bits alone."""
    kinds = set()
    for entry in planned:
        if entry.activation is not None:
            kinds.add("FP8" if is_fp8(entry) else "INT8")
        elif entry.weight is not None and entry.weight.grid != "log":
            kinds.add(f"W{entry.weight.bits}")
    rest = {"float16": "FP16", "bfloat16": "BF16"}[half]
    return "+".join(sorted(kinds)) + f" + {rest}" if kinds else rest
