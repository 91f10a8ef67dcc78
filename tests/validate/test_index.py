"""The index: every report and bundle below folders, on a page and as data."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.validate.formats import metric_text
from arvg_trt.validate.index import ReportIndex, make_index
from arvg_trt.validate.index_page import index_page
from arvg_trt.validate.machine.watch import MachineLoad
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.report.page import Page, Table, to_html, to_markdown
from arvg_trt.validate.report.render import write_report
from arvg_trt.validate.report.schema import Report, metrics

from ..command_line import arvg, assert_refused
from .conftest import MakeReport

GATES = ("psnr>=1", "speedup>=1")


@pytest.fixture
def out(tmp_path: Path, make_report: MakeReport) -> Path:
    """Three reports: one passed, one failed, one without gates and without a page."""
    made = make_report(gates=GATES)
    for folder, report in {
        "a b/validate/int8": made.report,
        "failed/validate/w8a8": make_report(gates=("psnr>=900", *GATES)).report,
        "plain": make_report().report,
    }.items():
        path = tmp_path / "out" / folder
        path.mkdir(parents=True)
        write_report(path, report, made.pictures)
    (tmp_path / "out/plain/report.html").unlink()
    return tmp_path / "out"


def table(page: Page, title: str) -> Table:
    (found,) = (each for each in page.tables if each.title == title)
    return found


def test_a_report_is_a_row_with_its_figures_as_the_terminal_has_them(out: Path) -> None:
    index = make_index([out], out)
    assert [report.file for report in index.reports] == [
        "a b/validate/int8/report.json",
        "failed/validate/w8a8/report.json",
        "plain/report.json",
    ]
    assert [report.passed for report in index.reports] == [True, False, None]
    passed, failed, plain = table(index_page(index), "Reports").rows
    assert [str(row[1]) for row in (passed, failed, plain)] == ["passed", "failed", "no gates"]
    assert (passed[2], plain[2]) == ("2 of 2", "")
    assert re.fullmatch(r"psnr is [\d.]+", str(failed[2]))
    first = index.reports[0].metrics
    assert metric_text("psnr_drop", first["psnr_drop"]) in str(passed[3])
    assert str(passed[4]).startswith(f"{metric_text('compression', first['compression'])} smaller")
    assert str(passed[5]) == f"{metric_text('speedup', first['speedup'])} faster than FP32"
    assert plain[6] == "plain/report.json"  # there is no page to lead to


def test_links_lead_from_the_page_to_the_reports(out: Path) -> None:
    page = out / "sub" / "index.html"
    assert arvg("index", out, "-o", page).code == 0
    links = re.findall(r'href="([^"]+)"', page.read_text("utf-8"))
    assert links == [
        "../a%20b/validate/int8/report.html",
        "../failed/validate/w8a8/report.html",
    ]
    assert all((page.parent / unquote(link)).is_file() for link in links)


def test_the_verdict_is_the_worst_of_all_reports(out: Path) -> None:
    page = index_page(make_index([out], out))
    assert (page.verdict.text, page.verdict.level) == ("1 of 3 reports failed a gate", "bad")
    page = index_page(make_index([out / "a b", out / "plain"], out))
    text = "Passed: all gates of 1 report, 1 without gates"
    assert (page.verdict.text, page.verdict.level) == (text, "good")
    page = index_page(make_index([out / "plain"], out))
    assert (page.verdict.text, page.verdict.level) == ("No gates were set", "plain")


def doubtful(report: Report) -> Report:
    """The report with rounds that spread as far as FP32 and the engine differ."""
    fp32 = Latency.of([10.0 + k % 7 for k in range(20)])
    engine = Latency.of([9.8 + (3 * k) % 7 for k in range(20)])
    row = msgspec.structs.replace(
        report.latency["total"], fp32=fp32, engine=engine, speed=ratio(fp32, engine)
    )
    return msgspec.structs.replace(report, latency={"total": row})


def test_a_gate_that_passed_on_an_inconclusive_figure_is_said(
    tmp_path: Path, make_report: MakeReport
) -> None:
    made = make_report(gates=GATES)
    report = doubtful(made.report)
    assert report.latency["total"].speed.verdict == "inconclusive"
    write_report(tmp_path, report, made.pictures)
    index = make_index([tmp_path], tmp_path)
    assert index.reports[0].doubtful == ("speedup>=1",)
    assert "speedup" in index.reports[0].inconclusive
    (row,) = table(index_page(index), "Reports").rows
    assert row[2] == "2 of 2, 1 on an inconclusive figure"
    assert "inconclusive" in str(row[5])


def test_what_cannot_be_read_is_a_row_and_no_error(out: Path) -> None:
    for name, text in {
        "newer": '{"schema": "arvg-trt/report/v9"}',
        "cut": (out / "plain/report.json").read_text()[:100],
        "empty": "",
        "other": "[]",
    }.items():
        (out / name).mkdir()
        (out / name / "report.json").write_text(text)
    (out / "half.tar").write_bytes(tar_of(out, "oci-layout"))
    outcome = arvg("index", out)
    assert outcome.code == 0
    assert outcome.out == f"reports: 7, failed: 1, bundles: 1\n{out / 'index.html'}\n"
    page = index_page(make_index([out], out))
    rows = {str(file): str(why) for file, why in table(page, "Not read").rows}
    assert set(rows) == {
        *(f"{name}/report.json" for name in ("newer", "cut", "empty", "other")),
        "half.tar",
    }
    assert "report/v9 is newer than this arvg-trt reads, report/v2" in rows["newer/report.json"]
    assert all(str(out) not in why for why in rows.values())
    assert len(table(page, "Reports").rows) == 3
    alone = index_page(make_index([out / "newer"], out))
    assert (alone.verdict.text, alone.verdict.level) == ("1 file cannot be read", "warn")
    to_html(alone)


def tar_of(folder: Path, name: str) -> bytes:
    """A tar file of one file that holds no JSON."""
    (folder / "member").write_bytes(b"no JSON")
    with tarfile.open(folder / "made", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(folder / "member", name)
    return (folder / "made").read_bytes()


def test_a_tar_file_of_anything_else_is_not_listed(out: Path) -> None:
    (out / "data.tar").write_bytes(tar_of(out, "images/0.png"))
    (out / "text.tar").write_text("no tar")
    assert make_index([out], out).bundles == ()


def test_hidden_folders_are_left_out_and_a_folder_named_twice_counts_once(out: Path) -> None:
    temporary = out / ".int8.x.tmp"
    temporary.mkdir()
    (temporary / "report.json").write_bytes((out / "plain/report.json").read_bytes())
    named = [out, out / "plain", out / "plain/report.json"]
    assert len(make_index(named, out).reports) == 3


def test_json_has_the_same_and_writes_a_page_only_where_it_is_asked_to(out: Path) -> None:
    outcome = arvg("index", out, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert not (out / "index.html").exists()
    found = msgspec.convert(json.loads(outcome.out), ReportIndex)
    assert found == make_index([out], out)
    assert found.reports[1].metrics == {
        name: value
        for name, value in metrics(
            msgspec.json.decode(
                (out / "failed/validate/w8a8/report.json").read_bytes(), type=Report
            )
        ).items()
        if value is not None and value != float("inf")
    }
    assert arvg("index", out, "--json", "-o", out / "page.html").out == outcome.out
    assert (out / "page.html").is_file()


def test_no_report_and_no_folder_are_missing_paths(out: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code = WorkspaceError.exit_code
    assert_refused(arvg("index", tmp_path / "none"), code, "no report.json below it", "validate")
    assert_refused(arvg("index", out, tmp_path / "gone"), code, "gone: no such file or folder")
    assert not (out / "index.html").exists()


def test_the_page_is_markdown_too(out: Path) -> None:
    text = to_markdown(index_page(make_index([out], out)))
    assert "[failed/validate/w8a8/report.html](failed/validate/w8a8/report.html)" in text


def test_a_speed_of_a_busy_machine_is_marked_as_the_terminal_marks_it(
    tmp_path: Path, make_report: MakeReport
) -> None:
    made = make_report()
    load = MachineLoad(processors=2, others_before=1.5, others_during=1.5, others_after=1.5)
    assert load.busy
    write_report(tmp_path, msgspec.structs.replace(made.report, machine=load), made.pictures)
    index = make_index([tmp_path], tmp_path)
    assert index.reports[0].busy == load.text
    ((*_, speed, _),) = table(index_page(index), "Reports").rows
    assert str(speed).endswith("on a busy machine")
