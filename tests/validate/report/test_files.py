"""report.json: version 1 is read as what it said, and what cannot be read is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.validate.report.compose import judged
from arvg_trt.validate.report.files import encode_report, load_report
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import METRIC_NAMES
from arvg_trt.validate.report.spread import figures
from arvg_trt.validate.schemas import NAMES, published_schema

from ...command_line import arvg, assert_refused
from ..conftest import MakeReport


def version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a report as an older version wrote it: no sums, gates that passed or failed."""
    old = {**data, "schema": "arvg-trt/report/v1"}
    for key in ("figures", "options", "recipe", "environment"):
        old.pop(key, None)
    old["gates"] = [
        {key: gate[key] for key in ("expression", "value", "passed", "reason")}
        for gate in data["gates"]
    ]
    for candidate in old["accuracy"].values():
        del candidate["sums"]
    for row in old["latency"].values():
        row["speed"] = {"ratio": 2.0, "low": 1.9, "high": 2.1, "verdict": "faster"}
    return old


def test_a_report_of_version_1_is_read(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(gates=("psnr>=1", "psnr>=99")).report
    path = tmp_path / "report.json"
    path.write_text(json.dumps(version_1(json.loads(encode_report(report)))))
    found = load_report(path)
    assert [gate.verdict for gate in found.gates] == ["passed", "failed"]
    assert found.verdict == "failed" and found.schema == "arvg-trt/report/v2"
    speed = found.latency["total"].speed
    assert (speed.ratio, speed.low, speed.high) == (2.0, 2.0, 2.0)
    page = report_page(found, [])
    assert "older version" in str([t for t in page.tables if t.title.startswith("Intervals")])
    outcome = arvg("compare", path, path, "--json")
    assert outcome.code == 0
    rows = {row["metric"]: row["cells"][1] for row in json.loads(outcome.out)["rows"]}
    assert rows["token_agreement"]["verdict"] == "same" and rows["token_agreement"]["why"]
    assert rows["psnr"]["low"] == 0.0


def test_version_2_keeps_figures_options_and_environment(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = make_report().report
    report = msgspec.structs.replace(
        report, figures=figures(report), options={"validate": {"seed": 1, "images": None}}
    )
    report = judged(report, parse_gates(["psnr_drop<=5@95%", "psnr>=99@95%"], METRIC_NAMES))
    path = tmp_path / "report.json"
    path.write_bytes(encode_report(report))
    assert load_report(path) == report
    assert [gate.verdict for gate in report.gates] == ["passed", "failed"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"schema": "arvg-trt/report/v3"}', "report/v3 is newer than this arvg-trt reads"),
        ('{"schema": "arvg-trt/report/v2", "mod', "cannot be read"),
        ('{"schema": "arvg-trt/report/v2"}', "cannot be read"),
        ('{"schema": "arvg-trt/report/v1"}', "cannot be read"),
        ('{"schema": "arvg-trt/report/v1", "gates": 3}', "cannot be read"),
        ('{"schema": "arvg-trt/report/v1", "gates": [{}]}', "cannot be read"),
        ('{"schema": "arvg-trt/report/v1", "latency": {"total": {}}}', "cannot be read"),
        ('{"schema": "arvg-trt/report/v1", "latency": [1]}', "cannot be read"),
        ("[]", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(WorkspaceError) as caught:
        load_report(path)
    assert what in caught.value.what and caught.value.where == str(path)
    assert_refused(arvg("compare", path, path), 9, "report.json")


def test_a_figure_of_nan_is_never_written(make_report: MakeReport) -> None:
    report = make_report().report
    found = figures(report)
    found["engine.psnr"] = msgspec.structs.replace(found["engine.psnr"], low=float("nan"))
    with pytest.raises(ValueError, match="low is nan"):
        encode_report(msgspec.structs.replace(report, figures=found))


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_printed_and_are_schemas(name: str) -> None:
    outcome = arvg("schema", name)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found == json.loads(json.dumps(published_schema(name)))


def test_a_report_holds_its_published_schema(make_report: MakeReport) -> None:
    report = make_report(gates=("psnr>=99",)).report
    data = json.loads(encode_report(msgspec.structs.replace(report, figures=figures(report))))
    checker = jsonschema.Draft202012Validator(published_schema("report"))
    assert not [*checker.iter_errors(data)]
    assert [*checker.iter_errors({**data, "gates": [{}]})]


def test_an_unknown_schema_is_refused() -> None:
    assert arvg("schema", "plans").code == 2
