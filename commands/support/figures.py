"""Print the main figures of a validation, also where its gates failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from ...errors import AccuracyError, InconclusiveError
from ...validate.facts import ValidationFacts, download_line, summary
from ...validate.intervals.figure import plain
from ...validate.intervals.speeds import TIMED
from ...validate.report.gates import GateResult, metric_of
from ...workspace.facts import facts
from ...workspace.stage import StageResult


def print_figures(validated: StageResult) -> None:
    """Print the main figures of a validation, a line for each gate, and where its report is."""
    from ...validate.report.files import load_report

    found = facts(validated.manifest, ValidationFacts)
    click.echo(summary(found))
    click.echo(download_line(found))
    if found.opinions:
        click.echo(found.opinions)
    for gate in load_report(validated.folder).gates:
        click.echo(gate_line(gate, found))
    click.echo(str(validated.folder / "report.html"))


def gate_line(gate: GateResult, found: ValidationFacts) -> str:
    """Return whether a gate passed, and what was measured."""
    measured = gate.reason if gate.value is None else f"{gate.value:.6g}"
    # A gate that read an interval has decided by it.
    doubted = gate.n is None and metric_of(gate.expression) in found.inconclusive
    doubt = ", inconclusive" if doubted else ""
    # A reason behind a value that was measured says how: on a busy machine, say.
    timed = plain(metric_of(gate.expression)) in TIMED
    busy = f", timed on a busy machine: {found.busy}" if found.busy and timed else ""
    return f"gate {gate.expression}: {gate.verdict} ({measured}{doubt}{busy})"


@contextlib.contextmanager
def figures_of_failures(as_json: bool) -> Iterator[None]:
    """Print the figures of a validation even if its gates failed."""
    try:
        yield
    except (AccuracyError, InconclusiveError) as error:
        if not as_json and error.stages:
            print_figures(error.stages[-1])
        raise
