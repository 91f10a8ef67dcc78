"""Write what a checked plan makes of a calibrated workspace: Q/DQ graphs, weights and the plan."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..calibrate.calibrated import Calibrated
from ..graph.sites import SiteMap
from ..numerics.scheme import CachePlan, Plan, SitePlan
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..runtime.families import SPEC_FILE
from ..workspace.files import encode_json
from ..workspace.stage import Reporter

if TYPE_CHECKING:
    from .facts import CacheRow, OverflowTensor, SiteRow


@dataclass(frozen=True, slots=True)
class Written:
    """Hold what was written: the plan with its scales, and what manifests say of its parts."""

    plan: Plan
    sites: list[SiteRow]
    wide: list[OverflowTensor]
    caches: list[CacheRow]


def write_quantized(
    source: Calibrated,
    entries: Mapping[str, SitePlan],
    options: QuantizeOptions,
    folder: Path,
    reporter: Reporter,
    max_memory: int = MAX_MEMORY,
    caches: Sequence[CachePlan] = (),
) -> Written:
    """Write the graphs, weights.safetensors and plan.json of a checked plan.

    `caches` says how a generator stores keys and values; nothing: as it was exported.
    """
    from ..calibrate.statistics import load_statistics, require_channels
    from .kv_cache.apply import quantize_caches, write_spec
    from .overflow import quantize_in_range
    from .qdq.attention import quantize_attention
    from .run import quantize_model

    file = source.calibrate / "statistics.safetensors"
    statistics = load_statistics(file)
    require_channels(statistics, source.planned.sites, str(file))
    run, site_map = source.run(reporter.progress), source.site_map
    written = source.run(reporter.progress, folder)

    def make(chosen: Mapping[str, SitePlan]) -> tuple[Plan, list[SiteRow]]:
        plan, results = quantize_model(
            run,
            folder,
            site_map,
            chosen,
            statistics,
            options,
            shared=source.generates,
            max_memory=max_memory,
        )
        if caches:
            filled, rows[:] = quantize_caches(written, site_map, caches)
            plan = msgspec.structs.replace(plan, caches=filled)
        return quantize_attention(written, site_map, plan, results)

    rows: list[CacheRow] = []
    final, results, wide = quantize_in_range(make, written, site_map, entries)
    if caches:
        write_spec(source.export, folder, caches)
    elif source.generates:
        shutil.copyfile(source.export / SPEC_FILE, folder / SPEC_FILE)
    (folder / "plan.json").write_bytes(encode_json(final))
    return Written(final, results, wide, rows)


def float_bytes(export: Path, site_map: SiteMap, generates: bool) -> int:
    """Return bytes of the FP32 weights: of all graphs, or of a generator's calibrated ones.

    Without the codes as they are searched, which their table repeats.
    """
    if not generates:
        constants = sum(4 * math.prod(s.weight_shape) for s in site_map.sites if s.role == "codes")
        return sum(p.stat().st_size for p in export.glob("*.onnx.data")) - constants
    from ..graph.io import load_graph

    models = [load_graph(export / f"{graph}.onnx") for graph in site_map.graphs]
    initializers = [v for model in models for v in model.graph.initializers.values()]
    return sum(v.const_value.nbytes for v in initializers if v.const_value is not None)
