"""Show each site of a model: its formats, what rounding costs it, and which site hurts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ...quantize.facts import SiteRow
from ..formats import DB
from ..metrics.image import decibels
from .cells import joined
from .charts.chart import Chart, Series
from .page import Table
from .schema import QDQ, Report

OF_SITES = (
    "In graph order; those alike that are not quantized share a line. Weight SQNR and input SQNR "
    "are of the rounding itself: of the weight's values, of the input's on calibration samples. "
    "What that costs at a site's output, `arvg-trt diagnose` measures."
)
OF_OUTPUTS = (
    f"{OF_SITES} Output SQNR: what the site gives with all quantized before it, against FP32."
)
OF_CHART = (
    "Signal to noise, higher is better, in graph order. The line is what a site gives with all "
    "quantized before it in its graph; a step down shows where error comes in. Dots are what "
    "rounding its weight or its input costs alone: the lower one is to be improved."
)
LOWEST = 3  # sites that are named
Outputs = Mapping[str, float | None]  # SQNR in dB by site; None without error


def site_outputs(report: Report) -> Outputs:
    """Return what the sites of the Q/DQ graphs give against FP32; empty if not measured."""
    if QDQ in report.generation:
        return report.generation[QDQ].sites
    return report.accuracy[QDQ].sites if QDQ in report.accuracy else {}


def site_table(report: Report) -> Table:
    """Return the plan as a table, site by site, with what each site costs."""
    outputs = site_outputs(report)
    groups = _alike(report, outputs)
    return Table(
        title="Sites",
        header=(
            *("Site", "Graph", "Weight", "Activation", "Weight SQNR", "Input SQNR"),
            *(("Output SQNR",) if outputs else ()),
            "Why not quantized",
        ),
        rows=tuple(_row(sites, outputs) for sites in groups),
        caption=OF_OUTPUTS if outputs else OF_SITES,
        folded=True,
        filters=("Graph", "Weight", "Activation"),
        nouns="sites",
        members=tuple(tuple(site.name for site in sites) for sites in groups),
    )


def site_charts(report: Report) -> tuple[Chart, ...]:
    """Chart every quantized site in graph order: rounding errors, and the error so far."""
    outputs = site_outputs(report)
    sites = [s for s in report.sites if s.weight_sqnr_db is not None or s.name in outputs]
    if not any(decibels(value) < math.inf for value in outputs.values()):
        return ()
    return (
        Chart(
            title="Which site hurts",
            caption=f"{OF_CHART} {_lowest(sites)}".rstrip(),
            unit="dB",
            names=tuple(site.name for site in sites),
            groups=tuple(site.graph for site in sites),
            series=(
                Series("Weight alone", tuple(s.weight_sqnr_db for s in sites), "good"),
                Series("Input alone", tuple(s.activation_sqnr_db for s in sites), "warn"),
                Series("Output", tuple(outputs.get(s.name) for s in sites), "accent", joined=True),
            ),
        ),
    )


def _lowest(sites: list[SiteRow]) -> str:
    """Return a sentence on the sites whose weight or input costs most by itself."""
    found = [
        (value, site.name, what)
        for site in sites
        for value, what in ((site.weight_sqnr_db, "weight"), (site.activation_sqnr_db, "input"))
        if value is not None
    ]
    texts = [f"{name} ({what} {DB(value)})" for value, name, what in sorted(found)[:LOWEST]]
    return f"Lowest alone: {', '.join(texts)}." if texts else ""


def _alike(report: Report, outputs: Outputs) -> list[list[SiteRow]]:
    """Return the sites in order; those of which nothing was measured, with all that equals."""
    groups: dict[object, list[SiteRow]] = {}
    for site in report.sites:
        measured = (site.weight_sqnr_db, site.activation_sqnr_db) != (None, None)
        alike = (site.graph, site.weight, site.activation, site.reason)
        alone = measured or site.name in outputs
        groups.setdefault((site.graph, site.name) if alone else alike, []).append(site)
    return list(groups.values())


def _row(sites: list[SiteRow], outputs: Outputs) -> tuple[str, ...]:
    site = sites[0]
    noise = (site.weight_sqnr_db, site.activation_sqnr_db)
    output = DB(decibels(outputs[site.name])) if site.name in outputs else ""
    return (
        joined([each.name for each in sites], "sites"),
        site.graph,
        site.weight,
        site.activation,
        *("" if db is None else DB(db) for db in noise),
        *((output,) if outputs else ()),
        site.reason or "",
    )
