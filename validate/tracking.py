"""Log reports to MLflow: a run for each, with its figures, its options and its pages."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WorkspaceError
from ..extras import require_packages
from ..workspace.files import sha256_file
from .report.files import load_report
from .report.schema import REPORT_FILE, Report, metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "arvg-trt"
DIGEST_TAG = "arvg_trt.report_sha256"
PAGES = (REPORT_FILE, "report.md", "report.html", "junit.xml")
MOST_AT_ONCE = 100  # parameters or metrics of a request, as servers limit parameters
LONGEST_VALUE = 500  # of a parameter, as the oldest servers limit it
# MLflow asks a server that does not answer seven times, over four minutes.
RETRIES, FEW = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"


class Tracker:
    """Hold a connection to an experiment of a tracking server."""

    def __init__(self, client: MlflowClient, uri: str, experiment: str) -> None:
        self._client, self._uri = client, uri
        self._experiment = experiment

    @classmethod
    def open(cls, uri: str, experiment: str = EXPERIMENT) -> Tracker:
        """Connect, and make the experiment if there is none of that name.

        Raises:
            ArvgError: MLflow is not installed.
            WorkspaceError: nothing answers at that address, or it refuses.
        """
        require_packages("mlflow")
        os.environ.setdefault(RETRIES, FEW)
        from mlflow import MlflowClient

        with answering(uri):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
            known = found.experiment_id if found else client.create_experiment(experiment)
        return cls(client, uri, known)

    def log(self, folder: Path) -> str:
        """Log the report in a folder as a run; return the run's id.

        A report that is logged there already is not logged again. The tag by which it is found is
        set last, so that a run that was broken off counts for nothing.

        Raises:
            WorkspaceError: the report cannot be read, or the server refuses.
        """
        report, digest = load_report(folder), sha256_file(folder / REPORT_FILE)
        with answering(self._uri):
            same = f"tags.`{DIGEST_TAG}` = '{digest}'"
            for known in self._client.search_runs([self._experiment], same, max_results=1):
                return str(known.info.run_id)
            run = self._client.create_run(
                self._experiment,
                tags={"arvg_trt.model": report.model, "arvg_trt.verdict": report.verdict or "none"},
                run_name=f"{report.model}/{report.name}",
            ).info.run_id
            try:
                self._fill(run, report, folder)
                self._client.set_tag(run, DIGEST_TAG, digest)
            except BaseException:
                self._client.set_terminated(run, "FAILED")
                raise
            self._client.set_terminated(run)
        return str(run)

    def _fill(self, run: str, report: Report, folder: Path) -> None:
        from mlflow.entities import Metric, Param

        now = int(1000 * time.time())
        measured = [
            Metric(name, value, now, 0)
            for name, value in metrics(report).items()
            if value is not None and math.isfinite(value)
        ]
        for start in range(0, len(measured), MOST_AT_ONCE):
            self._client.log_batch(run, metrics=measured[start : start + MOST_AT_ONCE])
        rows = [Param(name, value) for name, value in parameters(report).items()]
        for start in range(0, len(rows), MOST_AT_ONCE):
            self._client.log_batch(run, params=rows[start : start + MOST_AT_ONCE])
        for page in PAGES:
            if (folder / page).is_file():
                self._client.log_artifact(run, str(folder / page))


def parameters(report: Report) -> dict[str, str]:
    """Return the options of each stage by `stage.option`, and the versions by `version.package`."""
    found: dict[str, Any] = {
        f"{stage}.{name}": value
        for stage, options in report.options.items()
        for name, value in options.items()
    }
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in found.items()}
    texts |= {f"version.{name}": text for name, text in report.versions.items()}
    return {name: text[:LONGEST_VALUE] for name, text in texts.items()}


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line that names the address."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = " ".join(str(error.message).split())
        raise WorkspaceError(
            f"MLflow: {reason[:300]}",
            where=f"--mlflow {uri}",
            do="check the address and that you may write there; the report is kept",
        ) from error
