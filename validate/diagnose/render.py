"""Show a diagnosis as a page of tables and charts, and as a few lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec

from ...numerics.scheme import Plan
from ...workspace.files import encode_json
from ..formats import SHARE
from ..report.charts.chart import Chart, Series
from ..report.page import Badge, KeyFigure, Page, Table, to_html, to_markdown
from .facts import Diagnosis, SiteDiagnosis
from .text import (
    UNMEASURED,
    engine_text,
    graph_ratios,
    microseconds,
    raised_texts,
    ratio,
    samples_text,
    scale_text,
)

PLAN = "plan.json"
NOTES = (
    "A site's own error is at its output, relative to FP32's there, in FP32's units: scales that "
    "are folded into it are undone. Alone: the FP32 graph with this site's product of the Q/DQ "
    "graph. In order: the Q/DQ graph as it is.",
    "The model's ratio is at the outputs of its graphs, each fed what FP32's is fed; with several, "
    "the mean of their relative errors. Values that are small beside others of one output, as a "
    "detector's scores beside its boxes, hardly count there: `validate` shows them as its part.",
    "Sites are ranked on one half of the samples; what raising them brings is measured on the "
    "other half.",
    "Predicted: errors of single sites add up. Measured: the Q/DQ graph with FP32's products.",
    "Samples are few: a difference of a few tenths of a decibel may be chance.",
)


def write_diagnosis(folder: Path, diagnosis: Diagnosis, plan: Plan | None) -> None:
    """Write diagnosis.json and .md, the plan that raises the first sites, and where it can HTML."""
    page = diagnosis_page(diagnosis)
    (folder / "diagnosis.json").write_bytes(encode_json(diagnosis))
    (folder / "diagnosis.md").write_text(to_markdown(page), encoding="utf-8")
    if find_spec("jinja2") is not None:
        (folder / "diagnosis.html").write_text(to_html(page), encoding="utf-8")
    if plan is not None:
        (folder / PLAN).write_bytes(encode_json(plan))


def diagnosis_page(diagnosis: Diagnosis) -> Page:
    """Return the page that diagnosis.md and diagnosis.html show."""
    tables = (
        _odd_scales(diagnosis),
        _raised(diagnosis),
        _shares(diagnosis),
        _sites(diagnosis),
        _ranges(diagnosis),
    )
    text = engine_text(diagnosis)
    return Page(
        title=f"{diagnosis.model}, {diagnosis.name}: diagnosis",
        subtitle="Where a quantization loses its accuracy, site by site; "
        + samples_text(diagnosis),
        verdict=_verdict(diagnosis),
        warnings=tuple(warnings(diagnosis)),
        key_figures=_key_figures(diagnosis),
        charts=_charts(diagnosis),
        tables=tuple(table for table in tables if table.rows),
        notes=(*NOTES, f"{text[0].upper()}{text[1:]}."),
    )


def warnings(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what makes the figures less than they seem."""
    if diagnosis.samples_from == "calibration":
        yield (
            "Measured on calibration samples, which the scales were chosen on: give --images or "
            "--feeds for held-out ones."
        )
    if not diagnosis.separate:
        yield "There is one sample of a graph: gains were measured on what sites were ranked on."
    for graph, reason in diagnosis.unmeasured.items():
        yield f"{graph} was not measured: {reason}."
    explained = diagnosis.explained
    if explained is not None and not 0.5 <= explained <= 2:
        yield (
            f"Sites alone add up to {SHARE(explained)} of the whole error: they do not act one by "
            "one, and what is predicted is not to be relied on."
        )


def _verdict(diagnosis: Diagnosis) -> Badge:
    first = diagnosis.first_not_finite
    if first is not None:
        return Badge(f"NaN or infinity: first at {first}", "bad")
    if diagnosis.odd_scales:
        odd = diagnosis.odd_scales[0]
        return Badge(f"The scale of {odd.name}'s {odd.scale} is off: {scale_text(odd)}", "bad")
    if not diagnosis.raised:
        return Badge("No site to raise", "plain")
    top = max(
        (row for row in diagnosis.sites if row.share is not None), key=lambda row: row.share or 0
    )
    return Badge(f"Most of the error comes from site {top.name}: {SHARE(top.share)}", "plain")


def _key_figures(diagnosis: Diagnosis) -> tuple[KeyFigure, ...]:
    figures = [
        KeyFigure(
            label="SQNR to FP32",
            value=ratio(diagnosis.held_out_db),
            detail=f"of the model's outputs, {diagnosis.measured_on} runs",
        ),
        *(
            KeyFigure(label=f"Graph {graph}", value=ratio(value), detail="of its outputs alone")
            for graph, value in diagnosis.graphs.items()
            if len(diagnosis.graphs) > 1
        ),
    ]
    measured = [row for row in diagnosis.raised if row.measured_db is not None]
    if measured:
        figures.append(
            KeyFigure(
                label=f"With {len(measured)} sites raised",
                value=ratio(measured[-1].measured_db),
                detail=f"measured; {sum(row.kib for row in measured):.1f} KiB more",
            )
        )
    if diagnosis.requantized_db is not None:
        figures.append(
            KeyFigure(
                label="Quantized with the plan",
                value=ratio(diagnosis.requantized_db),
                detail="measured on the same runs",
            )
        )
    return tuple(figures)


def _odd_scales(diagnosis: Diagnosis) -> Table:
    return Table(
        title="Scales that are off",
        header=("Site", "Graph", "Scale of", "Better by the factor", "Error of the site"),
        rows=tuple(
            (
                odd.name,
                odd.graph,
                odd.scale,
                f"{odd.factor:.3g}",
                "not finite" if odd.gain_db is None else f"{-odd.gain_db:.2f} dB",
            )
            for odd in diagnosis.odd_scales
        ),
        caption="Measured at the site's output with this site alone quantized. A scale that "
        "calibration chose is within a few decibels of the best: look at an edited plan, at odd "
        "samples, or quantize again.",
    )


def _raised(diagnosis: Diagnosis) -> Table:
    rows, kib, base = [], 0.0, diagnosis.held_out_db
    timed = diagnosis.target is not msgspec.UNSET
    for number, row in enumerate(diagnosis.raised, start=1):
        kib += row.kib
        gain = ""
        if row.measured_db is not None and base is not None:
            gain = f"{row.measured_db - base:+.2f} dB"
        rows.append(
            (
                str(number),
                row.name,
                row.to,
                f"{row.kib:+.1f} KiB",
                f"{kib:+.1f} KiB",
                *((microseconds(row.us),) if timed else ()),
                ratio(row.predicted_db) if row.predicted_db is not None else UNMEASURED,
                ratio(row.measured_db) if row.measured_db is not None else "not measured",
                gain,
            )
        )
    return Table(
        title="Raise these sites",
        header=(
            *("", "Site", "To", "Weights", "Together"),
            *((f"An image on {diagnosis.target}, predicted",) if timed else ()),
            *("Predicted", "Measured", "Measured gain"),
        ),
        rows=tuple(rows),
        caption=f"Each line with those above it raised too. {PLAN} raises all of them, as "
        f"--raise says: `arvg-trt quantize WORKSPACE --plan {PLAN}`."
        + "".join(f" {text[0].upper()}{text[1:]}." for text in raised_texts(diagnosis)),
    )


def _shares(diagnosis: Diagnosis) -> Table:
    return Table(
        title="Parts",
        header=("Part", "Share of the error"),
        rows=tuple((part, SHARE(share)) for part, share in diagnosis.shares.items()),
        caption="Of what the sites do alone at the outputs of their graphs.",
    )


def _sites(diagnosis: Diagnosis) -> Table:
    return Table(
        title="Sites",
        header=(
            *("Site", "Graph", "Weight", "Activation", "In order", "Alone", "Input alone"),
            *("Weight alone", "Model, alone", "Share"),
        ),
        rows=tuple(_row(row) for row in diagnosis.sites),
        caption="In graph order, in dB: at the site's output with all sites before it quantized, "
        "with this site alone, with its input or weight alone; and at the graph's outputs.",
    )


def _row(row: SiteDiagnosis) -> tuple[str | Badge, ...]:
    own = ratio(row.accumulated_db, finite=row.finite)
    measured = row.share is not None
    return (
        row.name,
        row.graph,
        row.weight,
        row.activation,
        own if row.finite else Badge("NaN", "bad"),
        ratio(row.alone_db, finite=row.finite) if measured else UNMEASURED,
        ratio(row.input_db, finite=row.finite),
        ratio(row.weight_db, finite=row.finite),
        ratio(row.model_db, finite=row.finite) if measured else UNMEASURED,
        SHARE(row.share) if row.share is not None else UNMEASURED,
    )


def _ranges(diagnosis: Diagnosis) -> Table:
    with_ranges = [row for row in diagnosis.sites if row.ranges]
    names = list(dict.fromkeys(name for row in with_ranges for name in row.ranges))
    return Table(
        title="By scale, position or time step",
        header=("Site", *names),
        rows=tuple(
            (row.name, *(ratio(row.ranges.get(name, msgspec.UNSET)) for name in names))
            for row in with_ranges
        ),
        caption="At each site's output with all sites before it quantized.",
        folded=True,
    )


def _charts(diagnosis: Diagnosis) -> tuple[Chart, ...]:
    def values(kind: str) -> tuple[float | None, ...]:
        found = (getattr(row, kind) for row in diagnosis.sites)
        return tuple(v if isinstance(v, float) and math.isfinite(v) else None for v in found)

    series = (
        Series("Alone", values("alone_db"), "warn"),
        Series("Model, alone", values("model_db"), "good"),
        Series("In order", values("accumulated_db"), "accent", joined=True),
    )
    if not any(value is not None for each in series for value in each.values):
        return ()
    return (
        Chart(
            title="Which site hurts",
            caption="Signal to noise, higher is better. The line is a site's output with all sites "
            "before it quantized; dots are this site alone, at its output and at the model's.",
            unit="dB",
            names=tuple(row.name for row in diagnosis.sites),
            groups=tuple(row.graph for row in diagnosis.sites),
            series=series,
        ),
    )


def terminal_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what a terminal shows: the verdict, the parts, and what to raise."""
    yield samples_text(diagnosis)
    yield f"SQNR to FP32: {ratio(diagnosis.held_out_db)}. {_verdict(diagnosis)}"
    yield engine_text(diagnosis)
    if len(diagnosis.graphs) > 1:
        yield f"graphs: {graph_ratios(diagnosis)}"
    if len(diagnosis.shares) > 1:
        yield "shares: " + ", ".join(f"{part} {SHARE(s)}" for part, s in diagnosis.shares.items())
    kib = 0.0
    for number, row in enumerate(diagnosis.raised, start=1):
        kib += row.kib
        found = []
        if row.predicted_db is not None:
            found.append(f"predicted {ratio(row.predicted_db)}")
        if row.measured_db is not None:
            found.append(f"measured {ratio(row.measured_db)}")
        time = "" if row.us is msgspec.UNSET else f"{microseconds(row.us)}, "
        yield f"{number:>3}. raise {row.name} to {row.to}: {kib:+.1f} KiB, {time}{', '.join(found)}"
    yield from raised_texts(diagnosis)
    if diagnosis.requantized_db is not None:
        yield f"quantized with the plan: {ratio(diagnosis.requantized_db)}"
