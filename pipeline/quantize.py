"""Stage 3: plan, Q/DQ graphs and packed weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from ..artifacts import Manifest, Workspace, decode_json, encode_json, sha256_file
from ..errors import RecipeError
from ..recipe import MAX_MEMORY, QuantizeOptions
from ..runtime.generator import SPEC_FILE
from ..sites import Plan, SiteMap, SitePlan
from .build import FP16
from .common import (
    Reporter,
    StageResult,
    load_sites,
    package_versions,
    require_outputs,
    require_same_export,
    run_stage,
)
from .generated_samples import FULL, is_generator


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
    from ..calibrate.attention import quantize_attention
    from ..calibrate.peaks import quantize_in_range
    from ..calibrate.plan import check_plan, make_plan
    from ..calibrate.quantize import SiteResult, quantize_graphs
    from ..calibrate.quantize_generator import quantize_generator
    from ..calibrate.statistics import load_statistics

    if name == FP16:
        raise RecipeError(
            f"{FP16} names the engines of the unquantized graphs", do="choose another --name"
        )
    export, exported = require_outputs(workspace, "export", stage="export")
    calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
    require_same_export(exported, calibrated)
    site_map = load_sites(export)
    generates = is_generator(exported)
    # A generator's plan is by site; its other graphs share the sites of the full one.
    planned = SiteMap(sites=site_map.of_graph(FULL)) if generates else site_map
    if plan_file is None:
        plan = make_plan(planned, options)
    else:
        plan = decode_json(plan_file, Plan, do="see quantize/NAME/plan.json for the form")
    entries = check_plan(plan, planned)
    wanted = Manifest(
        stage="quantize",
        inputs={**exported.outputs, **calibrated.outputs}
        | ({"plan": sha256_file(plan_file)} if plan_file else {}),
        options=msgspec.to_builtins(options),
        versions=package_versions("onnxruntime", "onnx-ir", "numpy"),
    )

    def work(folder: Path) -> dict[str, object]:
        samples = calibrate / "samples"
        statistics = load_statistics(calibrate / "statistics.safetensors")
        size, progress = calibrated.options["batch_size"], reporter.progress

        def make(chosen: Mapping[str, SitePlan]) -> tuple[Plan, list[SiteResult]]:
            if not generates:
                return quantize_graphs(
                    export,
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
            made, told = quantize_generator(
                export,
                samples,
                folder,
                site_map,
                FULL,
                chosen,
                statistics,
                options,
                batch_size=size,
                progress=progress,
                max_memory=max_memory,
            )
            return quantize_attention(
                folder, samples, site_map, FULL, made, told, batch_size=size, progress=progress
            )

        final, results, wide = quantize_in_range(
            make,
            folder,
            samples,
            site_map,
            (FULL,) if generates else site_map.graphs,
            entries,
            batch_size=size,
            progress=progress,
        )
        if generates:
            shutil.copyfile(export / SPEC_FILE, folder / SPEC_FILE)
        (folder / "plan.json").write_bytes(encode_json(final))
        return {
            "sites": [asdict(result) for result in results],
            "packed_bytes": (folder / "weights.safetensors").stat().st_size,
            "fp32_bytes": float_bytes(export, site_map, FULL if generates else None),
            "quantized": sum(r.weight_sqnr_db is not None for r in results),
            "fp32_tensors": [asdict(tensor) for tensor in wide],
        }

    return run_stage(workspace.folder("quantize", name), wanted, work)


def float_bytes(export: Path, site_map: SiteMap, graph: str | None) -> int:
    """Bytes of the FP32 weights: of all graphs, or of the one that is quantized.

    Without the codes as they are searched, which their table repeats.
    """
    if graph is None:
        constants = sum(4 * math.prod(s.weight_shape) for s in site_map.sites if s.role == "codes")
        return sum(p.stat().st_size for p in export.glob("*.onnx.data")) - constants
    from ..calibrate.observers import load_graph

    initializers = load_graph(export / f"{graph}.onnx").graph.initializers.values()
    return sum(v.const_value.nbytes for v in initializers if v.const_value is not None)
