"""The report as data: names for gates, JSON and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.report.files import encode_report, load_report
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import METRIC_NAMES, Data, metrics, sizes
from arvg_trt.validate.report.site_tables import site_charts

from ..conftest import GreyCodec, MakeReport


def test_a_report_survives_json_and_its_bytes_repeat(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = make_report(gates=("psnr>=1", "psnr>=99")).report
    path = tmp_path / "report.json"
    path.write_bytes(encode_report(report))
    assert load_report(path) == report
    assert encode_report(load_report(path)) == path.read_bytes()
    assert next(iter(json.loads(path.read_text()))) == "schema"


def test_an_infinite_psnr_is_null_in_json_and_infinite_for_gates(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = make_report(engine=GreyCodec(), gates=("psnr_vs_fp32>=60",)).report
    path = tmp_path / "report.json"
    path.write_bytes(encode_report(report))
    assert json.loads(path.read_text())["accuracy"]["engine"]["psnr_vs_fp32"]["mean"] is None
    assert metrics(load_report(path))["psnr_vs_fp32"] == math.inf
    assert report.passed


def test_gates_read_the_engine_where_one_was_executed(make_report: MakeReport) -> None:
    report = make_report(engine=GreyCodec(offset=0.3)).report
    found = metrics(report)
    assert found["psnr"] == report.accuracy["engine"].psnr.mean != found["qdq.psnr"]
    without = msgspec.structs.replace(report, accuracy={"qdq": report.accuracy["qdq"]})
    assert metrics(without)["psnr"] == report.accuracy["qdq"].psnr.mean
    assert metrics(without)["engine.psnr"] is None


def test_every_metric_name_is_there_and_nothing_else(make_report: MakeReport) -> None:
    report = make_report(engine_ms=4.0).report
    found = metrics(report)
    assert tuple(found) == METRIC_NAMES
    assert found["compression"] == 3.5 and found["packed_compression"] == 4.0
    assert found["speedup"] == 2.5 and found["latency_ms"] == 4.0
    unmeasured = msgspec.structs.replace(report, accuracy={}, latency={})
    assert {name for name, value in metrics(unmeasured).items() if value is not None} == {
        "compression",
        "packed_compression",
    }


def test_a_report_of_another_schema_is_refused_by_name(
    make_report: MakeReport, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    text = encode_report(make_report().report).decode()
    path.write_text(text.replace("arvg-trt/report/v2", "arvg-trt/report/v3"))
    with pytest.raises(WorkspaceError, match="report/v3 is newer than this arvg-trt reads"):
        load_report(path)


@pytest.mark.parametrize("text", ["not json", "[]", '{"schema": "arvg-trt/report/v1"}'])
def test_a_damaged_report_is_refused_by_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(WorkspaceError) as caught:
        load_report(path)
    assert caught.value.where == str(path)


def test_a_number_that_json_cannot_hold_is_not_written_as_null(make_report: MakeReport) -> None:
    site = SiteRow(name="a", graph="b", weight="", activation="", weight_sqnr_db=math.nan)
    report = msgspec.structs.replace(make_report().report, sites=(site,))
    with pytest.raises(ValueError, match=r"sites\.0\.weight_sqnr_db is nan"):
        encode_report(report)


def test_images_without_numbers_are_refused(make_report: MakeReport) -> None:
    report = make_report().report
    with pytest.raises(ValueError, match="has 3 images, the data names 1"):
        msgspec.convert(
            msgspec.to_builtins(report)
            | {"data": msgspec.to_builtins(Data(validation=("x",), calibration=()))},
            type(report),
        )


def test_sizes_without_packed_weights_are_refused() -> None:
    rest = {"fp32_graph_bytes": {}, "fp32_weight_bytes": 10, "fp32_running_bytes": 10}
    with pytest.raises(WorkspaceError, match="0 bytes"):
        sizes(packed_weight_bytes=0, running_bytes={"qdq": 5}, **rest)
    with pytest.raises(WorkspaceError, match="no graph has a size"):
        sizes(packed_weight_bytes=1, running_bytes={"twin": 5}, **rest)


def test_the_size_is_of_what_runs_and_packed_weights_are_apart(make_report: MakeReport) -> None:
    rest = {"fp32_graph_bytes": {}, "fp32_weight_bytes": 12, "packed_weight_bytes": 3}
    both = sizes(fp32_running_bytes=14, running_bytes={"qdq": 7, "engine": 4}, **rest)
    assert (both.runs, both.compression, both.packed_compression) == ("engine", 3.5, 4.0)
    alone = sizes(fp32_running_bytes=14, running_bytes={"qdq": 7}, **rest)
    assert (alone.runs, alone.compression) == ("qdq", 2.0)
    older = msgspec.structs.replace(
        alone, compression=4.0, packed_compression=None, fp32_running_bytes=None, running_bytes={}
    )
    found = metrics(msgspec.structs.replace(make_report().report, sizes=older))
    assert (found["compression"], found["packed_compression"]) == (None, 4.0)


def test_a_report_of_a_version_that_knew_no_sites_of_tokenizers_is_read(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = make_report().report
    data = json.loads(encode_report(report))
    for found in data["accuracy"].values():
        del found["sites"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    assert load_report(path) == report
    assert metrics(load_report(path))["site_sqnr_db"] is None
    assert not site_charts(load_report(path))


def test_the_worst_site_of_a_tokenizer_is_a_metric(make_report: MakeReport) -> None:
    report = make_report().report
    qdq = msgspec.structs.replace(
        report.accuracy["qdq"], sites={"a": 30.0, "up.0|conv": 21.5, "c": None}
    )
    changed = msgspec.structs.replace(report, accuracy={**report.accuracy, "qdq": qdq})
    found = metrics(changed)
    assert found["qdq.site_sqnr_db"] == found["site_sqnr_db"] == 21.5
    assert found["engine.site_sqnr_db"] is None
    (chart,) = site_charts(changed)
    assert chart in report_page(changed, []).charts
    assert {s.label: s.values for s in chart.series}["Output"] == (21.5,)
