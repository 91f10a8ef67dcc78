"""Write the caches of a quantized generator: its graphs, their scales and what they say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save

from ...calibrate.calibration_run import CalibrationRun
from ...graph.io import load_graph
from ...graph.sites import SiteMap
from ...numerics.scheme import CachePlan
from ...runtime.families import SPEC_FILE
from ...runtime.folders import read_spec
from ...runtime.kv_cache import KV_SCALES
from ...runtime.spec import TEACHER_FORCED
from ...workspace.files import encode_json
from ..facts import CacheRow
from ..qdq.kv_cache import CacheScales, cached_attentions, store_caches
from .plan import step_graphs
from .scales import Fitted, fit_caches, scales_of

SCALES_FILE = "kv_scales.safetensors"


def quantize_caches(
    run: CalibrationRun, site_map: SiteMap, plans: Sequence[CachePlan]
) -> tuple[tuple[CachePlan, ...], tuple[CacheRow, ...]]:
    """Choose scales on the calibrated Q/DQ graph of `run`, and put them into all graphs there.

    What quantized linears make is what is stored. Returns the plans with the granularities filled
    in, and what reports say of each attention.

    Raises:
        CalibrationError: fewer than two samples.
    """
    folder, by_name = run.export, {plan.name: plan for plan in plans}
    fitted = fit_caches(run, TEACHER_FORCED, site_map, by_name)
    scales: dict[str, CacheScales] = {}
    digest = None
    for graph in (TEACHER_FORCED, *step_graphs(folder, site_map)):
        model = load_graph(folder / f"{graph}.onnx")
        attentions = cached_attentions(model.graph, site_map.of_graph(graph))
        if not scales:
            scales = {
                a.name: scales_of(fitted[a.name], a.heads[0]) if fitted else CacheScales()
                for a in attentions
            }
            digest = write_scales(scales, folder) if fitted else None
        for attention in attentions:
            kind = by_name[attention.name].type
            store_caches(model.graph, attention, kind, scales[attention.name])
        if digest is not None:
            model.metadata_props[KV_SCALES] = digest
        ir.save(model, folder / f"{graph}.onnx")
    filled = tuple(with_granularity(plan, fitted.get(plan.name, {})) for plan in plans)
    return filled, tuple(cache_row(plan, fitted.get(plan.name, {})) for plan in filled)


def write_scales(scales: Mapping[str, CacheScales], folder: Path) -> str:
    """Write scales [H, d] by attention; return the sha256 of the file."""
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, both in scales.items():
        assert both.key is not None and both.value is not None
        tensors |= {f"{name}.key_scale": both.key, f"{name}.value_scale": both.value}
    data = save(tensors)
    (folder / SCALES_FILE).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def with_granularity(plan: CachePlan, fitted: Mapping[str, Fitted]) -> CachePlan:
    """Return the plan with what was chosen."""
    if not fitted:
        return plan
    key, value = fitted["key"], fitted["value"]
    return msgspec.structs.replace(plan, keys=key.granularity, values=value.granularity)


def cache_row(plan: CachePlan, fitted: Mapping[str, Fitted]) -> CacheRow:
    key, value = fitted.get("key"), fitted.get("value")
    return CacheRow(
        name=plan.name,
        type=plan.type,
        keys=plan.keys,
        values=plan.values,
        key_sqnr_db=None if key is None else key.sqnr_db,
        value_sqnr_db=None if value is None else value.sqnr_db,
    )


def write_spec(export: Path, folder: Path, plans: Sequence[CachePlan]) -> None:
    """Write `generator.json` of a folder whose caches were planned."""
    _, spec = read_spec(export)
    file = folder / SCALES_FILE
    scales = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else msgspec.UNSET
    changed = msgspec.structs.replace(spec, kv_type=plans[0].type, kv_scales=scales)  # type: ignore[type-var]
    (folder / SPEC_FILE).write_bytes(encode_json(changed))
