"""Log what a command validated to MLflow, also where its gates failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ...errors import AccuracyError, ArvgError, InconclusiveError
from ...workspace.stage import StageResult
from .groups import option

if TYPE_CHECKING:
    from ...validate.tracking import Tracker

mlflow_option = option(
    "--mlflow",
    "mlflow_uri",
    group="Tracking",
    metavar="URI",
    help="Log the report to this MLflow server, such as http://localhost:5000.",
)
experiment_option = option(
    "--mlflow-experiment",
    "experiment",
    group="Tracking",
    metavar="NAME",
    default="arvg-trt",
    show_default=True,
    help="Experiment that the run belongs to.",
)

Log = Callable[[Sequence[StageResult]], None]


@contextmanager
def tracking(uri: str | None, experiment: str) -> Iterator[Log]:
    """Give what logs the validation among stages; those of an error are logged before it goes on.

    Raises:
        ArvgError: MLflow is not installed.
        WorkspaceError: nothing answers at `uri`, which shows before any stage runs.
    """
    if uri is None:
        yield lambda results: None
        return
    from ...validate.tracking import Tracker

    tracker = Tracker.open(uri, experiment)
    try:
        yield lambda results: log(tracker, results)
    except (AccuracyError, InconclusiveError) as error:  # of a gate: the report is written
        log(tracker, error.stages or ())
        raise


def log(tracker: Tracker, results: Sequence[StageResult]) -> None:
    """Log the report of a validation, and say the run's id on stderr."""
    for result in results:
        if result.manifest.stage == "validate":
            try:
                run = tracker.log(result.folder)
            except ArvgError as error:
                error.stages = tuple(results)
                raise
            click.echo(f"mlflow: run {run}", err=True)
