"""Print the main figures of a validation, also where its gates failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from ...errors import AccuracyError, InconclusiveError
from ...validate.facts import ValidationFacts, download_line, summary
from ...workspace.facts import facts
from ...workspace.stage import StageResult


def print_figures(validated: StageResult) -> None:
    """Print the main figures of a validation, and where its report is."""
    found = facts(validated.manifest, ValidationFacts)
    click.echo(summary(found))
    click.echo(download_line(found))
    click.echo(str(validated.folder / "report.html"))


@contextlib.contextmanager
def figures_of_failures(as_json: bool) -> Iterator[None]:
    """Print the figures of a validation even if its gates failed."""
    try:
        yield
    except (AccuracyError, InconclusiveError) as error:
        if not as_json and error.stages:
            print_figures(error.stages[-1])
        raise
