"""Build TensorRT engines of a quantization without the rounding that a choice leaves out."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from ...graph.sites import SiteMap
from ...numerics.scheme import Plan, SitePlan
from ..tensorrt.engine import EngineBuild
from .write import write_decided

LEFT_OUT = "its input is not rounded: it would not be faster by {:g}"


@contextmanager
def decided_build(build: EngineBuild, folder: Path) -> Iterator[EngineBuild]:
    """Yield a build of the graphs that its choice makes, which lie in a folder for so long.

    Sites that are computed in float are no longer planned there, so that the proof of an engine
    does not ask for them.
    """
    chosen, export = build.faster, build.export
    graphs = dict.fromkeys(site.graph for site in build.site_map.sites)
    removed = {graph: chosen.removed(graph) for graph in graphs} if chosen else {}
    if chosen is None or export is None or not chosen.is_quantized or not any(removed.values()):
        yield build
        return
    place = folder / "decided"
    try:
        write_decided(export, build.source, build.site_map, removed, place)
        left = without(build.site_map, removed)
        plan = build.plan and plan_of(build.plan, left, LEFT_OUT.format(chosen.factor))
        yield replace(build, source=place, site_map=left, plan=plan)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def without(site_map: SiteMap, removed: Mapping[str, Collection[str]]) -> SiteMap:
    """Return a site map without the sites of graphs that are `removed`."""
    left = [each for each in site_map.sites if each.name not in removed.get(each.graph, ())]
    known = {(each.graph, each.name) for each in left}
    return msgspec.structs.replace(
        site_map,
        sites=tuple(
            msgspec.structs.replace(
                each,
                shares_input_with=tuple(
                    name for name in each.shares_input_with if (each.graph, name) in known
                ),
            )
            for each in left
        ),
    )


def plan_of(plan: Plan, site_map: SiteMap, reason: str) -> Plan:
    """Return a plan in which sites that no graph of the map has stay in high precision."""
    known = {site.name for site in site_map.sites}
    return msgspec.structs.replace(
        plan,
        sites=tuple(
            entry if entry.name in known else SitePlan(name=entry.name, reason=reason)
            for entry in plan.sites
        ),
    )
