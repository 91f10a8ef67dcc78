"""Decide in which type each attention of a generator keeps its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...calibrate.calibrated import Calibrated
from ...errors import RecipeError
from ...graph.sites import SiteMap
from ...numerics.scheme import CachePlan, CacheType, Plan
from ...recipe.quantize import QuantizeOptions
from ...runtime.folders import read_spec
from ...runtime.spec import TEACHER_FORCED, KvType
from ..qdq.kv_cache import cache_names

OPTION = "kv_cache"
LEAVE_OUT = "leave kv_cache (--kv-cache) out"


def with_caches(plan: Plan, source: Calibrated, options: QuantizeOptions) -> Plan:
    """Return a plan with an entry per attention that keeps keys and values.

    Those of the plan itself are checked; where it has none, the options say the type. Without
    either the plan is returned as it is, and caches stay as they were exported.

    Raises:
        RecipeError: a model without caches, caches that the export rounds already, or entries of
            another model.
    """
    asked = options.kv_cache
    if plan.caches is msgspec.UNSET and asked is None:
        return plan
    exported = exported_type(source)
    if plan.caches is not msgspec.UNSET:
        entries = checked_entries(plan.caches, source.site_map)
        where = "plan.json"
    else:
        assert asked is not None
        entries = tuple(
            CachePlan(name=name, type=asked) for name in attention_names(source.site_map)
        )
        where = OPTION
    kinds: set[CacheType] = {entry.type for entry in entries}
    if exported != "float32" and kinds != {exported}:
        raise RecipeError(
            f"the export already rounds its caches to {exported}",
            where=where,
            do="export without --kv-type, then quantize them",
        )
    if exported in kinds:
        return msgspec.structs.replace(plan, caches=msgspec.UNSET)
    return msgspec.structs.replace(plan, caches=entries)


def exported_type(source: Calibrated) -> KvType:
    """Return the type of a generator's caches as exported.

    Raises:
        RecipeError: no generator, or one that keeps nothing between steps.
    """
    kind: KvType | None = None
    if source.generates:
        _, spec = read_spec(source.export)
        kind = getattr(spec, "kv_type", None)
    if kind is None:
        raise RecipeError(
            "this model keeps no keys and values between steps", where=OPTION, do=LEAVE_OUT
        )
    return kind


def attention_names(site_map: SiteMap) -> tuple[str, ...]:
    """Return the names of the attentions that keep keys and values, in order."""
    return cache_names(site_map.of_graph(TEACHER_FORCED))


def checked_entries(entries: Sequence[CachePlan], site_map: SiteMap) -> tuple[CachePlan, ...]:
    """Return the entries of a plan in the model's order.

    Raises:
        RecipeError: they are not one for each attention, or of several types.
    """
    names = attention_names(site_map)
    by_name = {entry.name: entry for entry in entries}
    for name in sorted(by_name.keys() ^ set(names)):
        what = "keeps no keys and values in this model" if name in by_name else "has no cache entry"
        raise RecipeError(
            f"{name} {what}", where="plan.json", do="quantize again, or remove `caches`"
        )
    if len(entries) > len(names):
        raise RecipeError("a cache has two entries", where="plan.json", do="remove one")
    kinds = sorted({entry.type for entry in entries})
    if len(kinds) > 1:
        raise RecipeError(
            f"caches of the types {' and '.join(kinds)}: a generator has one",
            where="plan.json",
            do="give all of them one type",
        )
    return tuple(by_name[name] for name in names)


def step_graphs(folder: Path, site_map: SiteMap) -> tuple[str, ...]:
    """Return the graphs of a generator that keep keys and values, by name."""
    return tuple(
        graph
        for graph in sorted({site.graph for site in site_map.sites})
        if graph != TEACHER_FORCED
        and set(attention_names(site_map)) <= set(cache_names(site_map.of_graph(graph)))
    )
