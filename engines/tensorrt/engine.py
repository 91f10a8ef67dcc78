"""Engines of a quantization: for which targets, and each graph's file with its row for reports."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BuildError
from ...graph.sites import Site, SiteMap
from ...numerics.scheme import Plan, SitePlan
from ...quantize.facts import OverflowTensor, QuantizationFacts
from ...quantize.overflow import unquantized_overflow_tensors
from ...recipe.build import BuildOptions
from ...runtime.trt_compat import Backend, device_compute_capability
from ...workspace.facts import facts
from ...workspace.files import encode_json
from ...workspace.manifest import Manifest
from ...workspace.stage import Reporter
from ...workspace.workspace import Workspace
from ..facts import EngineRow, SiteException
from ..faster.facts import KeptIfFaster
from ..formats import is_fp8, precision_text, required_formats
from .build import TimingCache
from .context_model import write_context_models
from .half_precision_files import half_precision_files, write_half_precision
from .inspect import KernelFormat
from .process import compile_engine
from .products import Products, read_products
from .profiles import Profiles
from .proof import Planned, digest, missing_sites, require_proof
from .targets import APART, Format, Target, check_formats, group_targets, resolve_target


def target_groups(
    backend: Backend, options: BuildOptions, plan: Plan | None, site_map: SiteMap
) -> tuple[tuple[Target, ...], ...]:
    """Return the targets, those together that share a plan file; without a name this machine's GPU.

    Raises:
        BuildError: an unknown target, one that lacks a format of the plan, or no GPU.
    """
    targets = named_targets(backend, options)
    ops = {site.name: site.op for site in site_map.sites}
    required: dict[str, Format] = {} if plan is None else required_formats(plan, ops)
    if options.half == "bfloat16":
        required["what is not quantized"] = "bf16"
    check_formats({s: f for s, f in required.items() if f not in APART}, targets)
    return group_targets(targets, [form for form in APART if form in required.values()])


def named_targets(backend: Backend, options: BuildOptions) -> list[Target]:
    """Return the targets that are named; without a name this machine's GPU.

    Raises:
        BuildError: an unknown target, or no GPU.
    """
    return [resolve_target(each, backend) for each in options.targets or own_gpu(backend)]


def own_gpu(backend: Backend) -> list[str]:
    """Return the GPU of this machine, which TensorRT builds for when no target is named.

    Raises:
        BuildError: this machine has none.
    """
    found = device_compute_capability()
    if found is None:
        raise BuildError(
            "TensorRT builds for the GPU of this machine, which has none",
            do="build on the device, or use the tensorrt_rtx backend",
        )
    return [f"sm{found}"]


def folder_name(backend: Backend, options: BuildOptions, group: Sequence[Target]) -> str:
    """Return the name of a group's folder: `rtx-sm86-sm89`, `rtx-bf16-sm89`."""
    back_end = backend.removeprefix("tensorrt_")
    half = ["bf16"] if options.half == "bfloat16" else []
    return "-".join([back_end, *half, *(target.sm for target in group)])


def foreseen_folder(options: BuildOptions) -> str:
    """Return the name of the folder where all targets share a plan file, as most do.

    Without targets TensorRT builds for the GPU of the machine, whose number is not known here.
    """
    backend = options.backend
    assert backend == "tensorrt_rtx" or backend == "tensorrt"
    groups = group_targets(resolve_target(each, backend) for each in options.targets)
    return folder_name(backend, options, groups[0] if groups else ()) + ("" if groups else "-smNN")


def overflow_risks(
    workspace: Workspace,
    plan: Plan | None,
    quantized: Manifest,
    options: BuildOptions,
    calibrated: Manifest | None,
    reporter: Reporter,
) -> Sequence[OverflowTensor]:
    """Return the tensors that stay in FP32: as `quantized` lists them, or without a plan by a run.

    The run needs a calibration; without one nothing is known. bfloat16 ends where float32 does.
    """
    if options.half == "bfloat16":
        return ()
    if plan is not None:
        return facts(quantized, QuantizationFacts).fp32_tensors
    return () if calibrated is None else unquantized_overflow_tensors(workspace, reporter)


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """Facts that the engines of all targets share; without a `plan` nothing is quantized.

    `source` has the graphs of `profiles`, in the order that they are built; where `is_half` they
    are half-precision copies already. The folder of `timing_cache` has TensorRT's timings of
    kernels, a file for each GPU. `faster` says which sites keep their rounded inputs, all where it
    is None; the FP32 graphs are in `export`.
    """

    source: Path
    backend: Backend
    options: BuildOptions
    plan: Plan | None
    site_map: SiteMap
    profiles: Mapping[str, Profiles]
    timing_cache: Path | None = None
    is_half: bool = False
    faster: KeptIfFaster | None = None
    export: Path | None = None

    def write(
        self,
        group: Sequence[Target],
        folder: Path,
        wide: Sequence[OverflowTensor],
        reporter: Reporter,
    ) -> tuple[EngineRow, ...]:
        """Write the engines of a group of targets to `folder`.

        What makes or reads a tensor of `wide` stays in FP32.

        Raises:
            BuildError: a graph does not compile, or a site is not what was planned.
        """
        task = f"compiling for {folder_name(self.backend, self.options, group)}"
        rows = []
        for k, graph in enumerate(self.profiles):
            reporter.progress(task, k, len(self.profiles))
            rows.append(self._write_graph(graph, group, folder, wide, reporter))
        write_context_models(self.source, folder, self.profiles, self.backend, group)
        reporter.progress(task, len(self.profiles), len(self.profiles))
        return tuple(rows)

    def _write_graph(
        self,
        graph: str,
        group: Sequence[Target],
        folder: Path,
        wide: Sequence[OverflowTensor],
        reporter: Reporter,
    ) -> EngineRow:
        """Write the half-precision copy of a graph and the engine that is built from it."""
        own_sites, half = self.site_map.of_graph(graph), self.options.half
        copy = self.write_copy(graph, folder, wide)
        entries = {entry.name: entry for entry in self.plan.sites} if self.plan else {}
        entries = {s.name: entries[s.name] for s in own_sites if s.name in entries}
        result = compile_engine(
            copy,
            folder / f"{graph}.engine",
            backend=self.backend,
            targets=group,
            profiles=self.profiles[graph],
            timing_cache=self.timings(group),
        )
        (folder / f"{graph}.layers.json").write_bytes(encode_json(result.layers))
        products = read_products(copy, self.profiles[graph])
        planned = planned_sites(own_sites, entries, products)
        if planned and not result.layers:
            reporter.warn(
                f"{graph}: {result.builder_version} lists no layers, so that none of "
                f"{len(planned)} planned sites is proved"
            )
        missing = missing_sites(result.layers, planned, products, group) if result.layers else []
        if not self.options.allow_unproved:
            require_proof(graph, missing)
        lacking = {each.site for each in missing}
        of_inputs = [each.site for each in planned if each.inputs is not None]
        proved = sum(site not in lacking for site in of_inputs) if result.layers else None
        return EngineRow(
            backend=result.builder_version,
            target=" ".join(target.sm for target in group),
            precision=precision_text(tuple(entries.values()), half),
            graph=graph,
            bytes=result.bytes,
            build_seconds=result.seconds,
            int8_sites_planned=len(of_inputs),
            int8_sites_proved=proved,
            exceptions=tuple(SiteException(site=m.site, reason=m.reason) for m in missing),
            proof=digest(result.layers, products, planned, missing) if result.layers else None,
            status=result.status,
        )

    def write_copy(self, graph: str, folder: Path, wide: Sequence[OverflowTensor]) -> Path:
        """Write the half-precision copy of a graph to `folder`; return its path."""
        sites = self.site_map.of_graph(graph)
        if not self.is_half:
            return write_half_precision(self.source, graph, sites, folder, wide, self.options.half)
        for name in half_precision_files(graph):
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, folder / name)
        return folder / f"{graph}.onnx"

    def timings(self, group: Sequence[Target]) -> TimingCache | None:
        """Return the timings of the GPU that TensorRT builds for; TensorRT for RTX has none.

        Raises:
            BuildError: there are none yet, and the options want them to be there.
        """
        mode = self.options.timing_cache
        if self.backend == "tensorrt_rtx" or self.timing_cache is None or mode == "off":
            return None
        path = self.timing_cache.absolute() / f"timing-{group[0].sm}.cache"
        if mode == "strict" and not path.is_file():
            do = 'build once with timing_cache = "update"'
            raise BuildError("no timings of kernels are there", where=str(path), do=do)
        return TimingCache(path=str(path), update=mode == "update")


def planned_sites(
    sites: Sequence[Site], entries: Mapping[str, SitePlan], products: Products
) -> list[Planned]:
    """Return what a plan wants of a graph's sites: quantized inputs, or weights kept in few bits.

    A weight that the graph holds in float, as logarithmic ones, is not wanted quantized.
    """
    weights = {product.node: product.weight for product in products.products}
    found = []
    for site in sites:
        if site.name in entries:
            entry = entries[site.name]
            inputs: KernelFormat | None = "fp8" if is_fp8(entry) else "int8"
            inputs = inputs if entry.activation is not None else None
            found.append(Planned(site.name, site.node, site.op, inputs, weights.get(site.node)))
    return found
