"""Comparisons: regressions are found, noise is not, unlike reports are refused."""

from __future__ import annotations

import re

import msgspec
import pytest

from arvg_trt.errors import BundleError, RecipeError
from arvg_trt.validate.compare.compare import Comparison, compare
from arvg_trt.validate.compare.page import comparison_html, comparison_markdown, signed
from arvg_trt.validate.compare.rules import RULES
from arvg_trt.validate.compare.tolerances import parse_limits
from arvg_trt.validate.formats import METRICS
from arvg_trt.validate.intervals.figure import plain
from arvg_trt.validate.metrics.latency import Cpu
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.schema import Report

from ..conftest import GreyCodec, MakeReport


def verdict(found: Comparison, metric: str, column: int = 1) -> str:
    (row,) = (row for row in found.rows if row.rule.metric == metric)
    return row.cells[column].verdict


def with_psnr(report: Report, shift: float) -> Report:
    engine = report.accuracy["engine"]
    psnr = Summary.of([(value or 0.0) + shift for value in engine.psnr.each])
    accuracy = report.accuracy | {"engine": msgspec.structs.replace(engine, psnr=psnr)}
    return msgspec.structs.replace(report, accuracy=accuracy)


def test_a_report_beside_itself_is_the_same(make_report: MakeReport) -> None:
    report = make_report().report
    found = compare([("old", report), ("new", report)])
    assert not found.regressed and not found.warnings
    assert {row.cells[1].verdict for row in found.rows} == {"same"}


def test_a_worse_engine_regresses_and_the_way_back_is_better(make_report: MakeReport) -> None:
    good = make_report(engine=GreyCodec(offset=0.01)).report
    bad = make_report(engine=GreyCodec(offset=0.3, gain=0.8)).report
    down, up = compare([("good", good), ("bad", bad)]), compare([("bad", bad), ("good", good)])
    assert down.regressed and not up.regressed
    for metric in ("psnr", "psnr_drop", "ssim", "token_agreement", "decoder_sqnr_db"):
        assert verdict(down, metric) == "worse" and verdict(up, metric) == "better"


@pytest.mark.parametrize(
    ("shift", "expected"), [(-0.04, "same"), (0.04, "same"), (-0.06, "worse"), (0.06, "better")]
)
def test_a_psnr_change_within_its_tolerance_is_noise(
    make_report: MakeReport, shift: float, expected: str
) -> None:
    report = make_report().report
    found = compare([("old", report), ("new", with_psnr(report, shift))])
    assert verdict(found, "psnr") == expected
    assert found.regressed == (expected == "worse")


@pytest.mark.parametrize(("ms", "expected"), [(5.4, "same"), (5.6, "worse"), (4.4, "better")])
def test_latency_counts_only_beyond_ten_percent(
    make_report: MakeReport, ms: float, expected: str
) -> None:
    found = compare(
        [("old", make_report(engine_ms=5.0).report), ("new", make_report(engine_ms=ms).report)]
    )
    assert verdict(found, "latency_ms") == expected
    assert not next(r for r in found.rows if r.rule.metric == "latency_ms").decides


def test_the_ratio_to_fp32_of_the_same_run_decides(make_report: MakeReport) -> None:
    """Milliseconds decide only where the user gives them a limit."""
    slow = make_report(engine_ms=9.0).report
    found = compare([("old", make_report(engine_ms=5.0).report), ("new", slow)])
    by_metric = {row.rule.metric: row for row in found.rows}
    assert by_metric["speedup"].decides and verdict(found, "speedup") == "worse"
    assert found.regressed and not by_metric["latency_ms"].decides
    asked = [("old", make_report(engine_ms=5.0).report), ("new", slow)]
    assert compare(asked, rules=parse_limits("latency_ms:10%")).regressed


def test_changes_of_shares_are_in_percentage_points() -> None:
    rules = {rule.metric: rule for rule in RULES}
    assert rules["top1"].tolerance_text == "0.50 pp"
    assert rules["top1"].text(0.918) == "91.80 %"
    assert signed(rules["top1"], -0.0213) == "\u22122.13 pp"
    assert signed(rules["psnr"], 0.1) == "+0.10 dB" and rules["kl"].tolerance_text == "10%"


def test_speed_of_another_machine_is_shown_but_not_judged(make_report: MakeReport) -> None:
    slow = msgspec.structs.replace(make_report(engine_ms=9.0).report, cpu=Cpu(model="Other"))
    found = compare([("old", make_report().report), ("new", slow)])
    assert verdict(found, "latency_ms") == verdict(found, "speedup") == "not compared"
    assert not found.regressed
    assert "another CPU" in found.warnings[0]


def test_other_models_and_images_are_refused_unless_allowed(make_report: MakeReport) -> None:
    report = make_report().report
    data = msgspec.structs.replace(report.data, validation=("a", "b", "c"))
    other = msgspec.structs.replace(report, model="other", data=data)
    with pytest.raises(BundleError, match=r"model other, not grey-mini.*other validation images"):
        compare([("old", report), ("new", other)])
    found = compare([("old", report), ("new", other)], allow_different=True)
    assert len(found.warnings) == 2 and not found.regressed


def test_other_images_behind_the_same_names_are_noticed(make_report: MakeReport) -> None:
    report = make_report().report
    engine = report.accuracy["engine"]
    each = tuple((v or 0) + 1 for v in engine.psnr_reference.each)
    changed = msgspec.structs.replace(
        engine, psnr_reference=msgspec.structs.replace(engine.psnr_reference, each=each)
    )
    other = msgspec.structs.replace(report, accuracy={"engine": changed})
    with pytest.raises(BundleError, match="FP32 itself"):
        compare([("old", report), ("new", other)])


def test_what_the_new_report_did_not_measure_is_a_warning(make_report: MakeReport) -> None:
    report = make_report().report
    poorer = msgspec.structs.replace(report, accuracy={"qdq": report.accuracy["qdq"]}, latency={})
    found = compare([("old", report), ("new", poorer)])
    assert any("accuracy is of qdq, the baseline's of engine" in w for w in found.warnings)
    assert any("Engine latency, median was not measured" in w for w in found.warnings)


def test_losing_bit_exactness_is_a_regression(make_report: MakeReport) -> None:
    exact, close = make_report(engine=GreyCodec()).report, make_report().report
    assert verdict(compare([("old", exact), ("new", close)]), "psnr_vs_fp32") == "worse"
    assert verdict(compare([("old", exact), ("new", exact)]), "psnr_vs_fp32") == "same"


def test_the_third_report_is_compared_with_the_first(make_report: MakeReport) -> None:
    report = make_report().report
    found = compare([("a", report), ("b", with_psnr(report, -1.0)), ("c", with_psnr(report, 1.0))])
    assert [verdict(found, "psnr", i) for i in (1, 2)] == ["worse", "better"]


def test_one_report_cannot_be_compared(make_report: MakeReport) -> None:
    with pytest.raises(RecipeError, match="1 report"):
        compare([("a", make_report().report)])


def test_both_forms_name_the_regression(make_report: MakeReport) -> None:
    report = make_report().report
    found = compare([("v1", report), ("v2", with_psnr(report, -1.0))])
    markdown, html = comparison_markdown(found), comparison_html(found)
    assert "**Regressed: PSNR to the original, PSNR drop from FP32**" in markdown
    assert "(\u22121.00 dB, \u22121.00 dB to \u22121.00 dB, worse)" in markdown
    assert "Regressed: PSNR to the original" in html
    assert not re.search(r"https?:|url\(|<script|<link", html)


def test_every_metric_of_a_report_can_be_compared() -> None:
    """One without a rule was left out of comparisons without a word."""
    own = [rule for rule in RULES if "." not in rule.metric]
    assert sorted(rule.metric for rule in own) == sorted(METRICS)
    # What GPU engines are built from stands beside its own main figures, and fails nothing.
    copies = [rule for rule in RULES if "." in rule.metric]
    assert all(rule.metric.startswith("twin.") and rule.decides is False for rule in copies)
    assert {plain(rule.metric) for rule in copies} < set(METRICS)
