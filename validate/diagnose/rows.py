"""Make the rows of a diagnosis from what was measured of each graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from ...calibrate.calibrated import Calibrated
from ...graph.sites import Site
from ...quantize.facts import SiteRow
from ...runtime.spec import TEACHER_FORCED
from .alone import Alone
from .diagnosis import GraphFindings, relative_db
from .facts import OddScale, SiteDiagnosis
from .noise import BucketedNoise

HEAD, CORE = "head", "core"


def part_of(site: Site, *, generates: bool) -> str:
    """Return the part of a model that a site belongs to: a graph, or a generator's head or core."""
    if not generates or site.graph in ("encoder", "decoder"):
        return site.graph
    if site.role == HEAD:
        return HEAD
    return CORE if site.graph == TEACHER_FORCED else site.graph


def finite_db(noise: BucketedNoise) -> float | None:
    """Return a ratio in dB; None where there is no error, or a value is not finite."""
    found = noise.decibels()
    return None if found is None or not math.isfinite(found) else found


def site_rows(
    source: Calibrated,
    planned: Sequence[Site],
    rows: Mapping[str, SiteRow],
    found: Mapping[str, GraphFindings],
) -> tuple[SiteDiagnosis, ...]:
    """Return a row for each quantized site of the measured graphs, in graph order."""
    together = math.fsum(
        noise
        for findings in found.values()
        for noise in findings.at_outputs.values()
        if math.isfinite(noise)
    )
    made = []
    for site in planned:
        if site.graph not in found:
            continue
        own = found[site.graph]
        alone, accumulated = own.alone.get(site.name), own.accumulated[site.name]
        at_outputs = own.at_outputs.get(site.name)
        finite = accumulated.is_finite and (alone is None or alone.output.is_finite)
        share = None
        if at_outputs is not None and math.isfinite(at_outputs) and together > 0:
            share = at_outputs / together
        ranges = accumulated.by_bucket() if len(accumulated.buckets.names) > 1 else {}
        made.append(
            SiteDiagnosis(
                name=site.name,
                graph=site.graph,
                part=part_of(site, generates=source.generates),
                weight=rows[site.name].weight,
                activation=rows[site.name].activation,
                finite=finite,
                accumulated_db=finite_db(accumulated),
                alone_db=None if alone is None else finite_db(alone.output),
                input_db=_of(alone, "input"),
                weight_db=_of(alone, "weight"),
                model_db=relative_db(at_outputs),
                share=share,
                ranges={
                    name: None if db is None or not math.isfinite(db) else db
                    for name, db in ranges.items()
                },
            )
        )
    return tuple(made)


def _of(alone: Alone | None, kind: str) -> float | msgspec.UnsetType | None:
    noise: BucketedNoise | None = None if alone is None else getattr(alone, kind)
    return msgspec.UNSET if noise is None else finite_db(noise)


def odd_scales(sites: Sequence[Site], found: Mapping[str, GraphFindings]) -> tuple[OddScale, ...]:
    """Return the scales of which a multiple gains much at the site's output, the worst first."""
    rows = [
        (site, each)
        for site in sites
        if site.graph in found
        for each in found[site.graph].scales.get(site.name, ())
        if each.is_off
    ]
    rows.sort(key=lambda row: -row[1].gain_db)
    return tuple(
        OddScale(
            name=site.name,
            graph=site.graph,
            scale=each.kind,
            factor=each.factor,
            gain_db=each.gain_db if math.isfinite(each.gain_db) else None,
        )
        for site, each in rows
    )


def shares_of(
    sites: Sequence[SiteDiagnosis], found: Mapping[str, GraphFindings]
) -> dict[str, float]:
    """Return the share of each part in what sites do alone at the outputs of their graphs."""
    shares: dict[str, float] = {}
    for row in sites:
        if row.share is not None:
            shares[row.part] = shares.get(row.part, 0.0) + row.share
    return shares
