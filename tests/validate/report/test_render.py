"""The files of a report: self-contained, complete, readable by the programs they are for."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from PIL import Image

from arvg_trt.errors import WorkspaceError
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.metrics.image import psnr
from arvg_trt.validate.report.compose import judged
from arvg_trt.validate.report.files import load_report
from arvg_trt.validate.report.gates import GateResult, parse_gates
from arvg_trt.validate.report.junit import junit
from arvg_trt.validate.report.page import to_html
from arvg_trt.validate.report.pictures.compared import difference
from arvg_trt.validate.report.render import report_page, write_report
from arvg_trt.validate.report.schema import METRIC_NAMES

from ..conftest import MakeReport

GATES_ON_SITES = ("site_sqnr_db>=30",)
GATES = ("psnr>=1", "psnr>=99")


class Elements(HTMLParser):
    """Start tags with attributes, and whether every element that opens also closes."""

    VOID = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_form_is_written_and_samples_are_the_pictures(
    make_report: MakeReport, tmp_path: Path
) -> None:
    made = make_report(gates=GATES)
    write_report(tmp_path, made.report, made.pictures)
    assert load_report(tmp_path / "report.json") == made.report
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    kinds = ("original", "fp32", "engine", "difference")
    samples = {f"samples/00{i}-set_{i}_png-{kind}.png" for i in range(2) for kind in kinds}
    assert names == {"report.json", "report.md", "report.html", "junit.xml"} | samples
    stored = np.asarray(Image.open(tmp_path / "samples/001-set_1_png-engine.png"))
    assert np.array_equal(stored, made.pictures[1].candidates["engine"])


def test_html_holds_its_pictures_and_loads_nothing(make_report: MakeReport, tmp_path: Path) -> None:
    made = make_report(gates=GATES)
    write_report(tmp_path, made.report, made.pictures)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script[^>]+|<link", text)
    page = Elements(text)
    assert page.open == []
    sources = [a["src"] or "" for tag, a in page.found if tag == "img"]
    assert len(sources) == 8
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in sources)
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0].removeprefix(prefix)))))
    worst = min(made.pictures, key=lambda each: psnr(each.reference, each.candidates["engine"]))
    assert np.array_equal(first, worst.original)
    assert not [a for tag, a in page.found if "href" in a or ("src" in a and tag != "img")]


def test_html_and_markdown_show_verdict_and_unexecuted_engines(
    make_report: MakeReport, tmp_path: Path
) -> None:
    made = make_report(gates=GATES)
    write_report(tmp_path, made.report, made.pictures)
    html = (tmp_path / "report.html").read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert '<span class="mark warn">built, not executed</span>' in html
    assert "**built, not executed**" in markdown
    (failed,) = (gate for gate in made.report.gates if not gate.passed)
    assert failed.value is not None and f"psnr is {failed.value:.6g}" == failed.reason
    assert f'<div class="verdict bad">Failed: gate psnr&gt;=99 ({failed.reason})</div>' in html
    assert f"**Failed: gate psnr>=99 ({failed.reason})**" in markdown
    assert "The worst first, by PSNR" in html and "The worst first, by PSNR" in markdown
    assert "Difference \u00d78" in markdown


def test_markdown_tables_have_a_cell_for_every_column(
    make_report: MakeReport, tmp_path: Path
) -> None:
    made = make_report(gates=GATES)
    write_report(tmp_path, made.report, made.pictures)
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert len(blocks) == 12
    for block in blocks:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block


def test_names_from_users_cannot_break_the_html(make_report: MakeReport, tmp_path: Path) -> None:
    made = make_report(name="<script>alert(1)</script>")
    write_report(tmp_path, made.report, made.pictures)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text and text.count("<script") == 1


def test_commands_in_a_text_are_code(make_report: MakeReport) -> None:
    page = report_page(make_report().report, [])
    page = replace(page, warnings=("give `--size 64`, not <b>`x`</b>",))
    html = to_html(page)
    assert "give <code>--size 64</code>, not &lt;b&gt;<code>x</code>&lt;/b&gt;" in html
    assert "what <code>bundle --packed</code> ships" in html
    assert "`" not in re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)


def test_images_used_for_calibration_too_are_called_out(
    make_report: MakeReport, tmp_path: Path
) -> None:
    made = make_report()
    data = msgspec.structs.replace(made.report.data, calibration=("set/1.png", "x.png"))
    write_report(tmp_path, msgspec.structs.replace(made.report, data=data), made.pictures)
    assert "1 of 3 validation images were also used" in (tmp_path / "report.md").read_text()


def test_junit_has_a_case_per_gate_and_says_what_failed(make_report: MakeReport) -> None:
    root = ElementTree.fromstring(junit(make_report(gates=GATES).report, seconds=1.5))
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "3", "1")
    gates, _ = root.findall("testsuite")
    assert (gates.get("tests"), gates.get("failures"), gates.get("time")) == ("2", "1", "1.500")
    assert properties(gates)["version.numpy"] == np.__version__
    passed, failed = gates.findall("testcase")
    assert passed.get("name") == "psnr>=1" and passed.find("failure") is None
    assert set(properties(passed)) == {"value", "interval"}
    message = failed.find("failure")
    assert message is not None and "wanted psnr>=99" in (message.get("message") or "")


def properties(element: ElementTree.Element) -> dict[str | None, str | None]:
    return {p.get("name"): p.get("value") for p in element.findall("properties/property")}


def test_junit_has_a_case_per_group_of_sites(make_report: MakeReport) -> None:
    report = make_report(gates=("site_sqnr_db>=30",)).report
    rows = (
        SiteRow(name="a", graph="encoder", weight="int8", activation="int8", weight_sqnr_db=40.0),
        SiteRow(name="b", graph="encoder", weight="int8", activation="int8", weight_sqnr_db=35.0),
        SiteRow(name="c", graph="decoder", weight="int8", activation="int8", weight_sqnr_db=50.0),
        SiteRow(name="d", graph="decoder", weight="float", activation="float", reason="excluded"),
    )
    qdq = msgspec.structs.replace(report.accuracy["qdq"], sites={"a": 31.0, "b": 12.5, "c": 44.0})
    report = msgspec.structs.replace(report, sites=rows, accuracy={**report.accuracy, "qdq": qdq})
    root = ElementTree.fromstring(junit(judged(report, parse_gates(GATES_ON_SITES, METRIC_NAMES))))
    encoder, decoder, plain = root.findall("testsuite")[1].findall("testcase")
    assert (
        properties(encoder)["output_sqnr"] == "12.50 dB (b)" and properties(encoder)["sites"] == "2"
    )
    failure = encoder.find("failure")
    assert (
        failure is not None and failure.get("message") == "b has 12.5 dB, wanted site_sqnr_db>=30"
    )
    assert decoder.find("failure") is None and decoder.find("skipped") is None
    assert plain.find("skipped") is not None
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "2", "1")


def test_an_open_gate_is_a_failure_of_its_own_type(make_report: MakeReport) -> None:
    gate = GateResult(
        expression="psnr_drop<=0.3@95%", value=0.2, passed=False, verdict="inconclusive", n=3
    )
    report = msgspec.structs.replace(make_report().report, gates=(gate,))
    failure = ElementTree.fromstring(junit(report)).find(".//failure")
    assert failure is not None and failure.get("type") == "inconclusive"
    assert str(report_page(report, []).verdict) == "Inconclusive: gate psnr_drop<=0.3@95%"


def test_a_missing_folder_is_refused(make_report: MakeReport, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is not a folder"):
        write_report(tmp_path / "missing", make_report().report, [])


def test_difference_is_amplified_without_wrapping_around() -> None:
    a = np.array([[[0, 10, 255]]], dtype=np.uint8)
    b = np.array([[[3, 9, 0]]], dtype=np.uint8)
    assert difference(a, b).tolist() == [[[24, 8, 255]]]
    assert np.array_equal(difference(a, b), difference(b, a))
