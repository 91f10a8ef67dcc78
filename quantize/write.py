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
from ..errors import CalibrationError
from ..graph.sites import SiteMap
from ..numerics.scheme import CachePlan, Plan, SitePlan
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..runtime.families import SPEC_FILE
from ..samples.files import DECODER_SAMPLES
from ..workspace.files import encode_json
from ..workspace.stage import Reporter

if TYPE_CHECKING:
    from .facts import CacheRow, OverflowTensor, SiteRow

    Made = tuple[Plan, list[SiteRow], list[OverflowTensor]]


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

    A generator's image decoder is quantized first, as an image tokenizer is, by samples of its own.
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
    run, (site_map, decoder) = source.run(reporter.progress), source.split
    written = source.run(reporter.progress, folder)
    scratch = folder / "decoder"

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
            apart=scratch if scratch.is_dir() else None,
        )
        if caches:
            filled, rows[:] = quantize_caches(written, site_map, caches)
            plan = msgspec.structs.replace(plan, caches=filled)
        return quantize_attention(written, site_map, plan, results)

    def make_decoder(chosen: Mapping[str, SitePlan]) -> tuple[Plan, list[SiteRow]]:
        return quantize_model(
            source.run_apart(reporter.progress),
            scratch,
            decoder,
            chosen,
            statistics,
            options,
            shared=False,
            max_memory=max_memory,
        )

    rows: list[CacheRow] = []
    made = [unquantized(decoder, entries)]
    if quantizes(decoder, entries):
        require_decoder_samples(source)
        scratch.mkdir()
        written_apart = source.run_apart(reporter.progress, scratch)
        made = [quantize_in_range(make_decoder, written_apart, decoder, entries)]
    made.insert(0, quantize_in_range(make, written, site_map, entries))
    shutil.rmtree(scratch, ignore_errors=True)
    final, results, wide = joined(made, source.planned)
    if caches:
        write_spec(source.export, folder, caches)
    elif source.generates:
        shutil.copyfile(source.export / SPEC_FILE, folder / SPEC_FILE)
    (folder / "plan.json").write_bytes(encode_json(final))
    return Written(final, results, wide, rows)


def quantizes(site_map: SiteMap, entries: Mapping[str, SitePlan]) -> bool:
    """Return whether a plan quantizes a site of the map."""
    return any(entries[site.name].weight is not None for site in site_map.sites)


def changed_graphs(source: Calibrated, entries: Mapping[str, SitePlan]) -> SiteMap:
    """Return the site map with the graphs that a plan is of: without an unquantized decoder."""
    own, decoder = source.split
    more = decoder.graphs if quantizes(decoder, entries) else ()
    return msgspec.structs.replace(source.site_map, graphs=(*own.graphs, *more))


def unquantized(site_map: SiteMap, entries: Mapping[str, SitePlan]) -> Made:
    """Return what is made of a map without a site to quantize: its graphs stay as they are."""
    from .run import site_row

    plan = Plan(sites=tuple(entries[site.name] for site in site_map.sites))
    return plan, [site_row(site, entries[site.name], None, None) for site in site_map.sites], []


def joined(made: Sequence[Made], planned: SiteMap) -> Made:
    """Return plans, rows and risks as one, in the order of the model's plan."""
    entries = {entry.name: entry for plan, _, _ in made for entry in plan.sites}
    rows = {row.name: row for _, each, _ in made for row in each}
    names = [site.name for site in planned.sites]
    return (
        msgspec.structs.replace(made[0][0], sites=tuple(entries[name] for name in names)),
        [rows[name] for name in names],
        [tensor for _, _, wide in made for tensor in wide],
    )


def require_decoder_samples(source: Calibrated) -> None:
    """Raises CalibrationError for a calibration without samples of a generator's image decoder."""
    if not (source.calibrate / DECODER_SAMPLES).is_dir():
        raise CalibrationError(
            "holds no samples of the image decoder, as an earlier version made it",
            where=str(source.calibrate),
            do="run `arvg-trt calibrate` again, or leave the decoder out: --decoder-bits 32",
        )


def float_bytes(export: Path, site_map: SiteMap, generates: bool) -> int:
    """Return bytes of the FP32 weights: of all graphs, or of a generator those of the map's.

    Without the codes as they are searched, which their table repeats.
    """
    if not generates:
        constants = sum(4 * math.prod(s.weight_shape) for s in site_map.sites if s.role == "codes")
        return sum(p.stat().st_size for p in export.glob("*.onnx.data")) - constants
    from ..graph.io import load_graph

    models = [load_graph(export / f"{graph}.onnx") for graph in site_map.graphs]
    initializers = [v for model in models for v in model.graph.initializers.values()]
    return sum(v.const_value.nbytes for v in initializers if v.const_value is not None)
