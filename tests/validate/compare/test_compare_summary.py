"""The comment of a pull request: its verdict, its limits, and names that are no markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from arvg_trt.validate.compare.compare import Comparison, compare
from arvg_trt.validate.compare.compare_summary import (
    LIMIT,
    ComparedPair,
    code,
    inert,
    marker,
    summary_markdown,
)
from arvg_trt.validate.compare.judge import Verdict
from arvg_trt.validate.compare.rules import RULES
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.files import encode_report
from arvg_trt.validate.report.gates import GateResult
from arvg_trt.validate.report.schema import Report

from ...command_line import arvg, assert_refused
from ..conftest import GreyCodec, MakeReport

VERDICTS: tuple[Verdict, Verdict] = ("baseline", "worse")
GITHUB = MarkdownIt("commonmark").enable("table")


def summary(base: Report, new: Report) -> str:
    labels = ("base.json", "new.json")
    found = compare(list(zip(labels, (base, new), strict=True)))
    return summary_markdown(ComparedPair(labels, base, new, found))


def title(text: str) -> str:
    return text.splitlines()[1]


def test_the_verdict_is_first_and_what_changed_stands_in_a_table(make_report: MakeReport) -> None:
    good = make_report(engine=GreyCodec(offset=0.01), gates=("psnr>=1",)).report
    bad = make_report(engine=GreyCodec(offset=0.3, gain=0.8), gates=("psnr>=1",)).report
    worse, better = summary(good, bad), summary(bad, good)
    assert title(worse).startswith("### Worse than the baseline in ")
    assert title(better).startswith("### Better than the baseline in ")
    assert "`grey-mini`, quantization `w8a8`; its only gate passed." in worse
    head, _, folded = worse.partition("<details>")
    row = r"\| PSNR to the original \| .* \| \u2212[\d.]+ dB \| .* to .* \| \*\*worse\*\* \|"
    assert re.search(row, head)
    assert "| same |" not in head and "| Packed weights, smaller |" in folded
    assert "| `numpy` |" in folded
    assert title(summary(good, good)) == "### Same as the baseline"
    html = GITHUB.render(worse)
    assert html.count("<table>") == 4 and html.count("<details>") == 3


def test_the_verdict_is_worse_where_the_exit_code_says_so(
    make_report: MakeReport, tmp_path: Path
) -> None:
    reports = [
        make_report(engine=GreyCodec(offset=offset)).report for offset in (0.0, 0.01, 0.02, 0.3)
    ]
    for k, report in enumerate(reports):
        (tmp_path / f"{k}.json").write_bytes(encode_report(report))
    for k in range(4):
        for other in range(4):
            pair = (tmp_path / f"{k}.json", tmp_path / f"{other}.json")
            outcome = arvg("compare", *pair, "--summary", "-")
            assert (outcome.code == 8) is title(outcome.out).startswith("### Worse")


def test_what_may_be_chance_is_inconclusive_and_says_what_would_decide(
    make_report: MakeReport,
) -> None:
    report = make_report().report
    engine = report.accuracy["engine"]
    moved = [(v or 0.0) + d for v, d in zip(engine.psnr.each, (0.4, -0.9, 0.1), strict=True)]
    accuracy = {"engine": msgspec.structs.replace(engine, psnr=Summary.of(moved))}
    text = summary(report, msgspec.structs.replace(report, accuracy=report.accuracy | accuracy))
    assert title(text).startswith("### Inconclusive: the change may be chance in ")
    assert re.search(
        r"\| PSNR to the original .*\| inconclusive: \d+ more samples would decide \|", text
    )


def test_failed_gates_are_in_the_verdict_and_listed(make_report: MakeReport) -> None:
    report = make_report().report
    failed = make_report(gates=("psnr>=99", "ssim>=0")).report
    text = summary(report, failed)
    assert title(text) == "### Same as the baseline; gate `psnr>=99` failed"
    assert "- `psnr>=99`: psnr is " in text


def test_what_cannot_be_compared_is_a_summary_too(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report().report
    (tmp_path / "a.json").write_bytes(encode_report(report))
    other = msgspec.structs.replace(report, model="other")
    (tmp_path / "b.json").write_bytes(encode_report(other))
    file = tmp_path / "new" / "summary.md"
    outcome = arvg("compare", tmp_path / "a.json", tmp_path / "b.json", "--summary", file)
    assert_refused(outcome, 7, "not comparable")
    text = file.read_text()
    assert title(text) == "### Not comparable with the baseline"
    assert "model other, not grey\\-mini" in text
    allowed = arvg(
        *("compare", tmp_path / "a.json", tmp_path / "b.json", "--allow-different"),
        *("--summary", file, "--json"),
    )
    assert allowed.code == 0 and json.loads(allowed.out)["warnings"]
    assert "> " in file.read_text()


def test_a_summary_is_of_two_reports_and_not_beside_json(
    make_report: MakeReport, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(encode_report(make_report().report))
    assert_refused(arvg("compare", path, path, path, "--summary", "-"), 3, "two reports")
    outcome = arvg("compare", path, path, "--summary", "-", "--json")
    assert outcome.code == 2 and "--summary" in outcome.err


HOSTILE = "</details> `x` | @team #1 ![i](http://a.b/c.png) <!-- --> \n# title\n<script>"


def test_names_are_no_markup(make_report: MakeReport) -> None:
    report = make_report().report
    gate = GateResult(
        expression=HOSTILE, value=None, passed=False, verdict="failed", reason=HOSTILE
    )
    new = msgspec.structs.replace(
        report, name=HOSTILE, versions={HOSTILE: HOSTILE}, gates=(gate,), model=HOSTILE
    )
    found = compare([("a", report), (HOSTILE, new)], allow_different=True)
    text = summary_markdown(ComparedPair((HOSTILE, HOSTILE), report, new, found))
    html = GITHUB.render(text)
    assert html.count("</details>") == html.count("<details>") == 3
    assert "<script" not in html and "<img" not in html and html.count("<!--") == 1
    outside = re.sub(r"<code>.*?</code>|<!--.*?-->", "", html, flags=re.DOTALL)
    assert not re.search(r"@team|#1|://", outside)
    assert not re.search(r"<h1>", html)


@pytest.mark.parametrize("character", ["w", "`", "|", "@", "&", "<", "\\", "\U0001f600"])
def test_a_comment_is_never_too_long(make_report: MakeReport, character: str) -> None:
    report = make_report().report
    text = character * 5000
    gates = tuple(
        GateResult(expression=text, value=None, passed=False, verdict="failed", reason=text)
        for _ in range(300)
    )
    versions = {f"{k}{text}": text for k in range(300)}
    new = msgspec.structs.replace(
        report, gates=gates, versions=versions, model=text, name=text, latency={}
    )
    found = compare([("base", report), ("new", new)], allow_different=True)
    cells = [replace(c, verdict=v) for c, v in zip(found.rows[0].cells, VERDICTS, strict=True)]
    rows = [replace(row, cells=tuple(cells)) for row in found.rows for _ in range(2)]
    found = Comparison(found.labels, tuple(rows[: len(RULES)]), (text,) * 300)
    made = summary_markdown(ComparedPair((text, text), report, new, found))
    assert len(made) < LIMIT and made.count("and 290 more") == 2
    assert GITHUB.render(made).count("<details>") == made.count("</details>")
    problem = summary_markdown(ComparedPair((text, text), report, new, None, text))
    assert len(problem) < LIMIT and "Not comparable" in problem


@pytest.mark.parametrize(
    ("model", "name", "line"),
    [
        ("cosmos-mini-di8x8", "int8", "<!-- arvg-trt cosmos-mini-di8x8-int8 -->"),
        ("a-->b\n<x>", "..", "<!-- arvg-trt a-b-x-.. -->"),
    ],
)
def test_the_marker_is_one_hidden_line(
    make_report: MakeReport, model: str, name: str, line: str
) -> None:
    report = msgspec.structs.replace(make_report().report, model=model, name=name)
    assert marker(report) == line


@given(st.text())
def test_code_and_sentences_say_the_text(text: str) -> None:
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if not plain or len(plain) > 200:
        return
    found = GITHUB.parseInline(code(text))[0].children
    assert found is not None and [t.type for t in found] == ["code_inline"]
    assert found[0].content == plain
    inline = GITHUB.parseInline(f"x {inert(text)} x")[0].children
    assert inline is not None and {t.type for t in inline} <= {"text", "text_special"}
    assert "".join(t.content for t in inline).replace("\u200b", "") == f"x {plain} x"
