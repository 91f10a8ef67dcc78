"""Reports logged to MLflow: figures, options and pages; once each; refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from arvg_trt.errors import WorkspaceError
from arvg_trt.validate.report.files import load_report
from arvg_trt.validate.report.render import write_report
from arvg_trt.validate.report.schema import metrics
from arvg_trt.validate.tracking import DIGEST_TAG, Tracker, parameters

from ..command_line import Finished, arvg
from .conftest import MakeReport


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder, which MLflow takes where it is told to; servers have the same interface."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "runs").as_uri()


def runs_of(store: str, experiment: str = "arvg-trt") -> list[Run]:
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def test_a_run_has_the_figures_options_and_pages_of_its_report(
    make_report: MakeReport, store: str, tmp_path: Path
) -> None:
    made = make_report(gates=("psnr_drop<=-90",))
    (tmp_path / "report").mkdir()
    write_report(tmp_path / "report", made.report, made.pictures, 1.0)
    run = Tracker.open(store).log(tmp_path / "report")
    (found,) = runs_of(store)
    assert found.info.run_id == run and found.info.status == "FINISHED"
    assert found.info.run_name == "grey-mini/w8a8"
    assert found.data.tags["arvg_trt.verdict"] == "failed"
    measured = {name: value for name, value in metrics(made.report).items() if value is not None}
    assert found.data.metrics.keys() <= measured.keys() and "qdq.psnr" in found.data.metrics
    for name, value in found.data.metrics.items():
        assert value == pytest.approx(measured[name], rel=1e-12)
    assert found.data.params == parameters(load_report(tmp_path / "report"))
    pages = {item.path for item in MlflowClient(store).list_artifacts(run)}
    assert pages == {"report.json", "report.md", "report.html", "junit.xml"}


def test_a_report_is_logged_once_and_a_run_that_broke_off_does_not_count(
    make_report: MakeReport, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_report()
    (tmp_path / "report").mkdir()
    write_report(tmp_path / "report", made.report, made.pictures, 1.0)
    tracker = Tracker.open(store)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="disk full"):
        broken.setattr(MlflowClient, "log_artifact", full)
        tracker.log(tmp_path / "report")
    first = tracker.log(tmp_path / "report")
    assert Tracker.open(store).log(tmp_path / "report") == first
    status = {run.info.run_id: run.info.status for run in runs_of(store)}
    assert sorted(status.values()) == ["FAILED", "FINISHED"] and status[first] == "FINISHED"
    tags = [DIGEST_TAG in run.data.tags for run in runs_of(store)]
    assert sorted(tags) == [False, True]


def test_an_address_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="MLflow: ") as caught:
        Tracker.open("nowhere://x")
    assert caught.value.where == "--mlflow nowhere://x" and "\n" not in str(caught.value)


def test_validate_logs_also_what_a_gate_refuses_and_says_so_on_stderr(
    workspace: Path, finished: Finished, store: str
) -> None:
    args = ("validate", workspace, "--recipe", finished.recipe, "--mlflow", store, "--json")
    failing = (*args, "--gate", "compression>=1000", "--mlflow-experiment", "mine")
    outcome = arvg(*failing)
    assert outcome.code == 8 and json.loads(outcome.out)["error"]["exit_code"] == 8
    (run,) = runs_of(store, "mine")
    assert f"mlflow: run {run.info.run_id}\n" in outcome.err
    assert run.data.tags["arvg_trt.verdict"] == "failed"
    outcome = arvg(*failing)  # up to date, and logged before
    assert outcome.code == 8 and f"mlflow: run {run.info.run_id}\n" in outcome.err


def test_a_bad_address_is_refused_before_anything_runs(workspace: Path, finished: Finished) -> None:
    before = (workspace / "validate/int8/report.json").read_bytes()
    for command in (("validate", workspace, "--recipe", finished.recipe), ("run", finished.recipe)):
        outcome = arvg(*command, "--mlflow", "nowhere://x")
        assert outcome.code == 9 and "MLflow" in outcome.err and outcome.out == ""
    assert (workspace / "validate/int8/report.json").read_bytes() == before


def test_a_report_that_cannot_be_logged_is_kept_and_its_stage_is_printed(
    workspace: Path, finished: Finished, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    monkeypatch.setattr(MlflowClient, "log_artifact", down)
    args = ("validate", workspace, "--recipe", finished.recipe, "--mlflow", store, "--json")
    outcome = arvg(*args)
    assert outcome.code == 9 and "MLflow: the server went away" in outcome.err
    found = json.loads(outcome.out)
    assert found["error"]["exit_code"] == 9
    assert found["stages"][0]["manifest"]["stage"] == "validate"
    assert load_report(workspace / "validate" / "int8").name == "int8"
