"""Starts, rates and the machine in a report; a busy one is marked wherever a time is read."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from arvg_trt.commands.support.figures import gate_line
from arvg_trt.validate.facts import ValidationFacts, summary
from arvg_trt.validate.machine.gpu import GpuState
from arvg_trt.validate.machine.start import Start, Starts
from arvg_trt.validate.machine.watch import MachineLoad
from arvg_trt.validate.metrics.outputs import OutputAccumulator
from arvg_trt.validate.report.compose import judged
from arvg_trt.validate.report.files import encode_report, load_report
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.junit import junit
from arvg_trt.validate.report.page import Badge, Table, to_html, to_markdown
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import METRIC_NAMES, Report
from arvg_trt.validate.schemas import published_schema

from ..conftest import MakeReport

QUIET = MachineLoad(processors=4, others_before=0.0, others_during=0.2, others_after=0.1)
LOADED = msgspec.structs.replace(QUIET, others_during=1.3)
BUSY_TEXT = "others kept 1.3 of 4 processors busy"


def starts() -> dict[str, Starts]:
    each = [
        Start(load_ms=20.0, first_ms=200.0, memory_bytes=5_000_000),
        Start(load_ms=10.0, first_ms=100.0, memory_bytes=7_000_000),
        Start(load_ms=90.0, first_ms=150.0, memory_bytes=6_000_000),
    ]
    return {"fp32": Starts.of(each), "engine": Starts.of(each[1:])}


def table(report: Report, title: str) -> Table | None:
    return next((t for t in report_page(report, []).tables if t.title == title), None)


def test_starts_are_medians_and_the_highest_peak(make_report: MakeReport) -> None:
    report = msgspec.structs.replace(make_report().report, starts=starts())
    found = table(report, "Start")
    assert found is not None and found.header == ("What", "FP32", "Engine as executed")
    assert found.rows == (
        ("Opening the graphs", "20.00 ms (10.00 to 90.00)", "50.00 ms (10.00 to 90.00)"),
        (
            "The first image behind that",
            "150.00 ms (100.00 to 200.00)",
            "125.00 ms (100.00 to 150.00)",
        ),
        ("Memory at its peak", "7.00 MB", "7.00 MB"),
    )
    assert "Memory of the GPU" not in str(found.rows) and "GPU" not in found.caption
    (key,) = (k for k in report_page(report, []).key_figures if k.label == "Start to first image")
    assert key.value == "175.00 ms" and "FP32 170.00 ms" in key.detail


def test_graphs_of_ones_own_start_to_a_sample(make_report: MakeReport) -> None:
    outputs = OutputAccumulator()
    outputs.add(np.ones(4, np.float32), np.full(4, 1.5, np.float32), "sample 0")
    report = msgspec.structs.replace(
        make_report().report,
        accuracy={},
        outputs={"engine": (outputs.result("net/y"),)},
        starts=starts(),
    )
    found = table(report, "Start")
    assert found is not None and found.rows[1][0] == "The first sample behind that"
    labels = {figure.label for figure in report_page(report, []).key_figures}
    assert "Start to first sample" in labels


def test_nothing_that_was_not_measured_is_shown(make_report: MakeReport) -> None:
    """Older reports have no first sample, and not every system tells memory."""
    alone = Starts(load_ms=(5.0,))
    report = msgspec.structs.replace(make_report().report, starts={"fp32": alone, "engine": alone})
    found = table(report, "Start")
    assert found is not None and [row[0] for row in found.rows] == ["Opening the graphs"]
    assert "Start to first image" not in to_markdown(report_page(report, []))
    without = make_report().report
    assert table(without, "Start") is None and table(without, "The machine meanwhile") is None
    assert "busy" not in to_markdown(report_page(without, []))


def test_a_gpus_peak_and_clocks_are_shown_where_there_is_one(make_report: MakeReport) -> None:
    state = GpuState(memory_bytes=10, megahertz=1980.0, memory_megahertz=None, busy_percent=3.0)
    own = Starts(load_ms=(5.0,), device_bytes=3_000_000)
    load = msgspec.structs.replace(QUIET, gpu_before=state, gpu_after=state)
    report = msgspec.structs.replace(make_report().report, starts={"engine": own}, machine=load)
    found, machine = table(report, "Start"), table(report, "The machine meanwhile")
    assert found is not None and found.rows[-1] == ("Memory of the GPU at its peak", "3.00 MB")
    assert machine is not None
    assert ("Clock of the GPU", "1980 MHz", "", "1980 MHz") in machine.rows
    assert not any(row[0] == "Clock of its memory" for row in machine.rows)


def test_images_a_second_are_those_of_a_tokenizer_too(make_report: MakeReport) -> None:
    found = table(make_report().report, "Rates")
    assert found is not None
    assert found.rows == (("Images a second", "100 (100 to 100)", "200 (200 to 200)"),)


def test_times_have_intervals_and_few_rounds_say_why_not(make_report: MakeReport) -> None:
    found = table(make_report().report, "Latency")
    assert found is not None and found.rows[0][1] == "10.00 ms (10.00 to 10.00)"
    assert found.rows[0][2] == "10.00 ms"
    assert "p90: 10 rounds do not bound it: 36 would" in found.caption


GATES = ("speedup>=1.5", "latency_ms<=1", "psnr>=1")


def judged_on(machine: MachineLoad | None, make_report: MakeReport) -> Report:
    report = msgspec.structs.replace(make_report().report, machine=machine)
    return judged(report, parse_gates(GATES, METRIC_NAMES))


def test_a_busy_machine_is_marked_on_top_and_beside_gates_on_times(
    make_report: MakeReport,
) -> None:
    report = judged_on(LOADED, make_report)
    fast, late, accurate = report.gates
    assert fast.passed and fast.reason == f"timed on a busy machine: {BUSY_TEXT}"
    assert not late.passed and late.reason is not None
    assert late.reason.startswith("latency_ms is 5;") and late.reason.endswith(BUSY_TEXT)
    assert accurate.reason is None
    page = report_page(report, [])
    (speed,) = (k for k in page.key_figures if k.label == "Speed against FP32")
    assert speed.level == "warn" and f"busy: {BUSY_TEXT}" in speed.detail
    assert any(BUSY_TEXT in text for text in page.warnings)
    for text in (to_html(page), to_markdown(page)):
        assert text.count(BUSY_TEXT) >= 4 and "1.30, busy" in text
    machine = table(report, "The machine meanwhile")
    assert machine is not None
    assert machine.rows[0][1:] == ("0.00", Badge("1.30, busy", "warn"), "0.10")
    cases = ElementTree.fromstring(junit(report)).findall("testsuite/testcase")
    marked = {
        c.get("name") for c in cases if c.find("properties/property[@name='machine']") is not None
    }
    assert marked == {"speedup>=1.5", "latency_ms<=1"}


@pytest.mark.parametrize("machine", [QUIET, None, MachineLoad(processors=4)])
def test_a_quiet_or_unknown_machine_is_not_called_busy(
    machine: MachineLoad | None, make_report: MakeReport
) -> None:
    report = judged_on(machine, make_report)
    assert report.gates[0].reason is None and report.busy == ""
    page = report_page(report, [])
    assert not any("busy" in text for text in page.warnings)
    assert all("busy" not in k.detail for k in page.key_figures)


def test_a_passed_verdict_counts_gates_on_a_busy_machine(make_report: MakeReport) -> None:
    report = msgspec.structs.replace(make_report().report, machine=LOADED)
    found = judged(report, parse_gates(("speedup>=1.5", "psnr>=1"), METRIC_NAMES))
    assert str(report_page(found, []).verdict) == ("Passed: all 2 gates, 1 timed on a busy machine")


def test_the_terminal_says_it_too(make_report: MakeReport) -> None:
    report = judged_on(LOADED, make_report)
    facts = ValidationFacts(metrics={"speedup": 2.0}, busy=report.busy)
    assert summary(facts) == "2.00\u00d7 faster than FP32 on a busy machine"
    lines = [gate_line(gate, facts) for gate in report.gates]
    assert all(BUSY_TEXT in line for line in lines[:2]) and "busy" not in lines[2]
    quiet = ValidationFacts(metrics={"speedup": 2.0})
    assert "busy" not in summary(quiet) + gate_line(report.gates[2], quiet)


def test_all_of_it_survives_json_and_an_older_report_has_none(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = msgspec.structs.replace(judged_on(LOADED, make_report), starts=starts())
    path = tmp_path / "report.json"
    path.write_bytes(encode_report(report))
    assert load_report(path) == report
    data = json.loads(path.read_text())
    for key in ("starts", "machine", "rates", "percentiles"):
        del data[key]
    path.write_text(json.dumps(data))
    older = load_report(path)
    assert older.machine is None and older.starts == {} and older.busy == ""
    assert table(older, "Latency") is not None and table(older, "Rates") is not None


def test_keys_of_a_later_version_are_passed_over(make_report: MakeReport, tmp_path: Path) -> None:
    """An addition keeps the schema's version, so what reads a report takes it as if not there."""
    report = msgspec.structs.replace(make_report(gates=("psnr>=1",)).report, machine=LOADED)
    data = json.loads(encode_report(report))
    later = {"of": "a later version"}
    data["later"] = later
    for part in (data["sizes"], data["machine"], data["gates"][0], data["latency"]["total"]):
        part["later"] = later
    for part in (data["accuracy"]["qdq"], data["sites"][0], data["engines"][0], data["data"]):
        part["later"] = later
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    assert load_report(path) == report


def test_the_published_schema_has_the_new_fields() -> None:
    found = published_schema("report")["$defs"]
    assert {"starts", "machine", "rates", "percentiles"} <= found["Report"]["properties"].keys()
    assert {"load_ms", "first_ms", "device_bytes"} <= found["Starts"]["properties"].keys()
    assert "others_during" in found["MachineLoad"]["properties"]
