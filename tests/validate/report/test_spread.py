"""Figures that a report's own spread does not tell from no difference are said to be open."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arvg_trt.validate.facts import ValidationFacts, poor_line, summary
from arvg_trt.validate.intervals.figure import Figure
from arvg_trt.validate.intervals.figures import drops
from arvg_trt.validate.intervals.sampled import mean
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import Report
from arvg_trt.validate.report.spread import inconclusive_metrics, may_be

from ..conftest import MakeReport


def open_drop(drops: list[float]) -> bool:
    return may_be(Figure.of(statistics.fmean(drops), mean(drops)), 0.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda v: round(v, 3)), min_size=2, max_size=7))
def test_the_verdict_on_few_images_is_that_of_scipys_test(values: list[float]) -> None:
    if statistics.stdev(values) < 1e-9 or statistics.fmean(values) == 0:
        return
    p = stats.ttest_1samp(values, 0).pvalue
    if abs(p - 0.05) > 1e-9:
        assert open_drop(values) == (p > 0.05)


def test_one_image_tells_nothing_and_equal_ones_leave_no_doubt() -> None:
    assert open_drop([0.4])
    assert not open_drop([0.4, 0.4])
    assert not open_drop([0.0]) and not open_drop([0.0, 0.0])
    assert open_drop([0.3, -0.29])


def test_images_without_error_on_both_sides_do_not_differ() -> None:
    a, b = Summary.of([math.inf, 30.0]), Summary.of([math.inf, 29.0])
    assert drops(a, b) == [0.0, 1.0]
    assert drops(a, Summary.of([40.0, 29.0])) == [None, 1.0]


def with_times(report: Report, fp32: list[float], engine: list[float]) -> Report:
    a, b = Latency.of(fp32), Latency.of(engine)
    row = msgspec.structs.replace(report.latency["total"], fp32=a, engine=b, speed=ratio(a, b))
    return msgspec.structs.replace(report, latency={"total": row})


def with_drops(report: Report, drops: list[float]) -> Report:
    found = report.accuracy["engine"]
    reference = [v or 0.0 for v in found.psnr_reference.each]
    own = Summary.of([r - d for r, d in zip(reference, drops, strict=True)])
    changed = msgspec.structs.replace(found, psnr=own, psnr_drop=statistics.fmean(drops))
    return msgspec.structs.replace(report, accuracy={**report.accuracy, "engine": changed})


def texts(report: Report) -> dict[str, str]:
    page = report_page(report, [])
    return {figure.label: f"{figure.value}; {figure.detail}" for figure in page.key_figures}


def test_a_speed_within_its_spread_is_open_on_top_and_in_the_gates(make_report: MakeReport) -> None:
    report = make_report(gates=("speedup>=0.5",)).report
    assert "speedup" not in inconclusive_metrics(report)
    assert texts(report)["Speed against FP32"].startswith("2.00\u00d7;")
    noisy = with_times(report, [10.0] * 10, [9.0, 11.0] * 5)
    assert "speedup" in inconclusive_metrics(noisy)
    assert texts(noisy)["Speed against FP32"].startswith("inconclusive; ")
    page = report_page(noisy, [])
    assert "may be chance" in str(page.tables[0].rows[0][-1])
    assert str(page.verdict) == "Passed: its only gate, 1 on an inconclusive figure"


def test_a_drop_within_the_spread_of_images_is_open_on_top(make_report: MakeReport) -> None:
    report = make_report().report
    clear = with_drops(report, [0.30, 0.31, 0.32])
    assert "psnr_drop" not in inconclusive_metrics(clear)
    assert "drop 0.31 dB" in texts(clear)["PSNR to the original"]
    noisy = with_drops(report, [0.9, -0.3, 0.3])
    assert "psnr_drop" in inconclusive_metrics(noisy)
    assert "drop inconclusive (0.30 dB)" in texts(noisy)["PSNR to the original"]


METRICS = {
    "psnr_drop": 0.0667595,
    "token_agreement": 0.87402,
    "compression": 3.16624,
    "speedup": 1.87286,
}


def test_the_line_of_the_terminal_is_rounded_as_the_report() -> None:
    assert summary(ValidationFacts(metrics=METRICS)) == (
        "PSNR drop 0.07 dB, tokens equal 87.40 %, 3.17\u00d7 smaller on disk, "
        "1.87\u00d7 faster than FP32"
    )


def test_the_line_of_the_terminal_says_which_tokens_are_of_the_same_seed() -> None:
    generator = {"top1": 0.976, "token_agreement": 0.7107, "compression": 3.2}
    assert summary(ValidationFacts(metrics=generator)) == (
        "likeliest token equal 97.60 %, tokens equal (same seed) 71.07 %, "
        "3.20\u00d7 smaller on disk"
    )


def test_the_line_of_the_terminal_says_what_is_open_and_what_is_slower() -> None:
    doubtful = ValidationFacts(metrics=METRICS, inconclusive=("psnr_drop", "speedup"))
    assert summary(doubtful) == (
        "PSNR drop 0.07 dB (inconclusive), tokens equal 87.40 %, 3.17\u00d7 smaller on disk, "
        "speed against FP32 inconclusive (1.87\u00d7)"
    )
    slower = ValidationFacts(metrics={"speedup": 0.5})
    assert summary(slower) == "slower than FP32 (0.50\u00d7 its speed)"


@pytest.mark.parametrize(("psnr", "said"), [(17.0, True), (19.96, False), (28.9, False)])
def test_a_drop_from_a_poor_reconstruction_is_named_so(psnr: float, said: bool) -> None:
    """No drop from 17 dB, with half of the tokens other ones, is no success."""
    line = poor_line(ValidationFacts(metrics={"psnr": psnr, "psnr_drop": 0.05}))
    assert bool(line) is said
    assert not said or "FP32 itself reconstructs these images at 17.05 dB alone" in line
    assert poor_line(ValidationFacts(metrics={"psnr_drop": 0.05})) == ""


def test_facts_of_an_older_version_have_nothing_open(tmp_path: Path) -> None:
    old = json.dumps({"metrics": METRICS})
    assert msgspec.json.decode(old, type=ValidationFacts).inconclusive == ()
