"""Stage 3: plan, Q/DQ graphs and packed weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..errors import RecipeError
from ..graph.sites import Plan, SiteMap, SitePlan
from ..recipe.options import MAX_MEMORY, QuantizeOptions
from ..runtime.generator import SPEC_FILE
from ..samples.generated import is_generator
from ..workspace.artifacts import Manifest, Workspace, decode_json, encode_json, sha256_file
from .common import (
    FP16,
    Reporter,
    StageResult,
    load_sites,
    package_versions,
    require_outputs,
    run_stage,
    told,
)

HALVES = ("encoder_bits", "decoder_bits")

if TYPE_CHECKING:
    from ..quantize.overflow import WideTensor
    from ..quantize.run import SiteResult


Batch = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What quantization reads of a workspace."""

    export: Path
    exported: Manifest
    calibrate: Path
    calibrated: Manifest
    site_map: SiteMap

    @classmethod
    def open(cls, workspace: Workspace) -> Calibrated:
        """Raises WorkspaceError for stages that were not run, or statistics of another export."""
        export, exported = require_outputs(workspace, "export", stage="export")
        calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
        return cls(export, exported, calibrate, calibrated, load_sites(export))

    @property
    def generates(self) -> bool:
        return is_generator(self.exported)

    @property
    def planned(self) -> SiteMap:
        """A generator's plan is by site; its other graphs share the sites of the calibrated."""
        return self.site_map.calibrated

    @property
    def batch_size(self) -> int:
        """Samples in flight, as calibration had them."""
        return told(self.calibrated, "options", "batch_size", Batch)

    @property
    def samples(self) -> Path:
        return self.calibrate / "samples"

    @property
    def digests(self) -> dict[str, str]:
        return self.exported.as_inputs() | self.calibrated.as_inputs()


def quantize_stage(
    workspace: Workspace,
    name: str,
    options: QuantizeOptions,
    reporter: Reporter,
    plan_file: Path | None = None,
    max_memory: int = MAX_MEMORY,
) -> StageResult:
    """Quantize by `options`, or by a plan that a person or a search has edited.

    Second moments, where a rounding asks for them, take at most `max_memory` bytes at a time.
    """
    from ..quantize.plan import check_plan, make_plan

    if name == FP16:
        raise RecipeError(
            f"{FP16} names the engines of the unquantized graphs", do="choose another --name"
        )
    source = Calibrated.open(workspace)
    require_halves_of_tokenizer(options, source.exported)
    if plan_file is None:
        plan = make_plan(source.planned, options)
    else:
        plan = decode_json(
            plan_file, Plan, do="see quantize/NAME/plan.json for the form", error=RecipeError
        )
    entries = check_plan(plan, source.planned)
    if not source.generates:
        require_float_attention(options, entries)
    wanted = Manifest(
        stage="quantize",
        inputs=source.digests | ({"plan": sha256_file(plan_file)} if plan_file else {}),
        options=msgspec.to_builtins(options),
        versions=package_versions("onnxruntime", "onnx-ir", "numpy"),
    )

    def work(folder: Path) -> dict[str, object]:
        _, results, wide = write_quantized(source, entries, options, folder, reporter, max_memory)
        if source.generates:
            wide += unplanned_wide_tensors(source, reporter)
        return {
            "sites": [asdict(result) for result in results],
            "packed_bytes": (folder / "weights.safetensors").stat().st_size,
            "fp32_bytes": float_bytes(source.export, source.site_map, source.generates),
            "quantized": sum(r.weight_sqnr_db is not None for r in results),
            "fp32_tensors": [asdict(tensor) for tensor in wide],
        }

    return run_stage(workspace.folder("quantize", name), wanted, work)


def unplanned_wide_tensors(source: Calibrated, reporter: Reporter) -> list[WideTensor]:
    """Those of graphs that no plan changes: a generator's decoder, VAR's updates."""
    from ..quantize.overflow import wide_tensors
    from ..quantize.overflow_loop import collect_loop_peaks

    peaks = collect_loop_peaks(source.export, source.site_map, progress=reporter.progress)
    return wide_tensors(source.export, peaks)


def require_halves_of_tokenizer(options: QuantizeOptions, exported: Manifest) -> None:
    """Raises RecipeError for bits of an encoder or decoder, which only a tokenizer has: a graph of
    one's own that is called so is none.
    """
    given = next((n for n in HALVES if getattr(options, n) != getattr(QuantizeOptions(), n)), None)
    if given is not None and options.weight_bits is None and "tokenizer" not in exported.results:
        raise RecipeError(
            "is of an image tokenizer's half, and this is none",
            where=given,
            do="use weight_bits, or edit plan.json and give it back with --plan",
        )


def require_float_attention(options: QuantizeOptions, entries: Mapping[str, SitePlan]) -> None:
    """Raises RecipeError for formats of attention products, which only generators get."""
    planned = [entry.name for entry in entries.values() if entry.other is not None]
    if planned or options.attention != "float":
        raise RecipeError(
            "only a generator's attention is quantized",
            where=planned[0] if planned else "attention",
            do='leave it "float"',
        )


def write_quantized(
    source: Calibrated,
    entries: Mapping[str, SitePlan],
    options: QuantizeOptions,
    folder: Path,
    reporter: Reporter,
    max_memory: int = MAX_MEMORY,
) -> tuple[Plan, list[SiteResult], list[WideTensor]]:
    """The graphs, weights.safetensors and plan.json of a checked plan."""
    from ..calibrate.statistics import load_statistics, require_channels
    from ..quantize.overflow import quantize_in_range
    from ..quantize.qdq.attention import quantize_attention
    from ..quantize.run import quantize_graphs
    from ..quantize.run_generator import quantize_generator

    file = source.calibrate / "statistics.safetensors"
    statistics = load_statistics(file)
    require_channels(statistics, source.planned.sites, str(file))
    samples, site_map = source.samples, source.site_map
    size, progress = source.batch_size, reporter.progress

    quantize = quantize_generator if source.generates else quantize_graphs

    def make(chosen: Mapping[str, SitePlan]) -> tuple[Plan, list[SiteResult]]:
        made, told = quantize(
            source.export,
            samples,
            folder,
            site_map,
            chosen,
            statistics,
            options,
            batch_size=size,
            progress=progress,
            max_memory=max_memory,
        )
        return quantize_attention(
            folder, samples, site_map, made, told, batch_size=size, progress=progress
        )

    final, results, wide = quantize_in_range(
        make,
        folder,
        samples,
        site_map,
        source.planned.graphs,
        entries,
        batch_size=size,
        progress=progress,
    )
    if source.generates:
        shutil.copyfile(source.export / SPEC_FILE, folder / SPEC_FILE)
    (folder / "plan.json").write_bytes(encode_json(final))
    return final, results, wide


def float_bytes(export: Path, site_map: SiteMap, generates: bool) -> int:
    """Bytes of the FP32 weights: of all graphs, or of a generator's calibrated ones.

    Without the codes as they are searched, which their table repeats.
    """
    if not generates:
        constants = sum(4 * math.prod(s.weight_shape) for s in site_map.sites if s.role == "codes")
        return sum(p.stat().st_size for p in export.glob("*.onnx.data")) - constants
    from ..calibrate.observers.reduce import load_graph

    models = [load_graph(export / f"{graph}.onnx") for graph in site_map.graphs]
    initializers = [v for model in models for v in model.graph.initializers.values()]
    return sum(v.const_value.nbytes for v in initializers if v.const_value is not None)
