"""Stage 3: plan, Q/DQ graphs and packed weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import msgspec

from ..artifacts import Manifest, Workspace, decode_json, encode_json, sha256_file
from ..errors import RecipeError
from ..recipe import QuantizeOptions
from ..sites import Plan, SiteMap
from .build import FP16
from .common import (
    Reporter,
    StageResult,
    load_sites,
    package_versions,
    require_outputs,
    run_stage,
)


def quantize_stage(
    workspace: Workspace,
    name: str,
    options: QuantizeOptions,
    reporter: Reporter,
    plan_file: Path | None = None,
) -> StageResult:
    """Quantize by `options`, or by a plan that a person or a search has edited."""
    from ..calibrate.plan import check_plan, make_plan
    from ..calibrate.quantize import quantize_graphs
    from ..calibrate.statistics import load_statistics

    if name == FP16:
        raise RecipeError(
            f"{FP16} names the engines of the unquantized graphs", do="choose another --name"
        )
    export, exported = require_outputs(workspace, "export", stage="export")
    calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
    site_map = load_sites(export)
    if plan_file is None:
        plan = make_plan(site_map, options)
    else:
        plan = decode_json(plan_file, Plan, do="see quantize/NAME/plan.json for the form")
    entries = check_plan(plan, site_map)
    wanted = Manifest(
        stage="quantize",
        inputs={**exported.outputs, **calibrated.outputs}
        | ({"plan": sha256_file(plan_file)} if plan_file else {}),
        options=msgspec.to_builtins(options),
        versions=package_versions("onnxruntime", "onnx-ir", "numpy"),
    )

    def work(folder: Path) -> dict[str, object]:
        final, results = quantize_graphs(
            export,
            calibrate / "samples",
            folder,
            site_map,
            entries,
            load_statistics(calibrate / "statistics.safetensors"),
            options,
            batch_size=calibrated.options["batch_size"],
            progress=reporter.progress,
        )
        (folder / "plan.json").write_bytes(encode_json(final))
        return {
            "sites": [asdict(result) for result in results],
            "packed_bytes": (folder / "weights.safetensors").stat().st_size,
            "fp32_bytes": weight_bytes(export, site_map),
            "quantized": sum(r.weight_sqnr_db is not None for r in results),
        }

    return run_stage(workspace.folder("quantize", name), wanted, work)


def weight_bytes(export: Path, site_map: SiteMap) -> int:
    """Of the exported graphs, without the codes as they are searched, which their table repeats."""
    constants = sum(4 * math.prod(s.weight_shape) for s in site_map.sites if s.role == "codes")
    return sum(p.stat().st_size for p in export.glob("*.onnx.data")) - constants
