"""Print what was quantized and the main figures of a validation, also where its gates failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ...errors import AccuracyError, InconclusiveError
from ...quantize.facts import QuantizationFacts, count_sites
from ...validate.facts import ValidationFacts, download_line, poor_line, summary
from ...validate.formats import DISTANCE
from ...validate.intervals.figure import plain
from ...validate.intervals.speeds import IN_ROUNDS
from ...validate.report.gates import GateResult, chance_text, metric_of
from ...workspace.facts import facts
from ...workspace.stage import StageResult

if TYPE_CHECKING:
    from ...validate.report.schema import Report

MOST_REASONS = 4


def quantized_lines(result: StageResult) -> list[str]:
    """Return how many sites were quantized, what their weights take, and why others were not."""
    found = facts(result.manifest, QuantizationFacts)
    sites = count_sites(found.sites)
    only = f", {sites.weights_only} of them in their weights alone" if sites.weights_only else ""
    lines = [
        f"{sites.quantized} of {sites.of} sites quantized{only}; their graphs' weights take "
        f"{found.packed_bytes / 1e6:,.2f} MB packed, {found.fp32_bytes / 1e6:,.2f} MB in FP32"
    ]
    reasons = list(sites.high_precision.items())
    # One reason more takes no more room than the line that says how many are left out.
    shown = reasons if len(reasons) <= MOST_REASONS + 1 else reasons[:MOST_REASONS]
    lines += [f"  {count} in high precision: {reason}" for reason, count in shown]
    if len(shown) < len(reasons):
        rest = sum(count for _, count in reasons[len(shown) :])
        lines.append(f"  {rest} in high precision for other reasons: {result.folder / 'plan.json'}")
    return lines


def with_sites(results: Sequence[StageResult]) -> dict[str, Any]:
    """Return what `--json` prints of stages: each, and the count of sites of a quantization."""
    found: dict[str, Any] = {"stages": results}
    for result in results:
        if result.manifest.stage == "quantize":
            found["sites"] = count_sites(facts(result.manifest, QuantizationFacts).sites)
    return found


def print_figures(results: Sequence[StageResult]) -> None:
    """Print what stages quantized, the figures of the last, a validation, its gates and report."""
    from ...validate.report.files import load_report

    for result in results:
        if result.manifest.stage == "quantize":
            click.echo("\n".join(quantized_lines(result)))
    validated = results[-1]
    found = facts(validated.manifest, ValidationFacts)
    report = load_report(validated.folder)
    click.echo(summary(found))
    extra = (frechet_line(report), download_line(found), poor_line(found), found.gap)
    for text in filter(None, (*extra, *found.remarks)):
        click.echo(text)
    if found.opinions:
        click.echo(found.opinions)
    for gate in report.gates:
        click.echo(gate_line(gate, found))
    click.echo(str(validated.folder / "report.html"))


def frechet_line(report: Report) -> str:
    """Return a generator's distances to FP32's images, beside what chance makes of as many."""
    found = report.generation.get(report.headline or "")
    rows = found.pictures.frechet if found is not None and found.pictures is not None else ()
    parts = [
        f"{DISTANCE(row.distance)} on {row.key.removeprefix('frechet_')} "
        f"(two sets of FP32 images: {DISTANCE(row.floor)})"
        for row in rows
    ]
    return f"Fréchet distance to FP32's images {', '.join(parts)}" if parts else ""


def gate_line(gate: GateResult, found: ValidationFacts) -> str:
    """Return whether a gate passed, and what was measured."""
    measured = gate.reason if gate.value is None else f"{gate.value:.6g}"
    # A gate that read an interval has decided by it.
    doubted = gate.n is None and metric_of(gate.expression) in found.inconclusive
    # `inconclusive` beside the verdict would be another verdict.
    doubt = f", {chance_text(gate.expression)}" if doubted else ""
    # A reason behind a value that was measured says how: on a busy machine, say.
    timed = plain(metric_of(gate.expression)) in IN_ROUNDS
    busy = f", timed on a busy machine: {found.busy}" if found.busy and timed else ""
    return f"gate {gate.expression}: {gate.verdict} ({measured}{doubt}{busy})"


@contextlib.contextmanager
def figures_of_failures(as_json: bool) -> Iterator[None]:
    """Print the figures of a validation even if its gates failed."""
    try:
        yield
    except (AccuracyError, InconclusiveError) as error:
        if error.stages and not as_json:
            print_figures(error.stages)
        raise
