"""Tolerances by metric: what is read, what is refused, and what then decides."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from arvg_trt.errors import RecipeError
from arvg_trt.validate.compare.compare import compare
from arvg_trt.validate.compare.rules import RULES, Rule
from arvg_trt.validate.compare.tolerances import parse_limits, read_tolerances
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.files import encode_report
from arvg_trt.validate.report.schema import Report

from ...command_line import arvg, assert_refused
from ..conftest import MakeReport

HEAD = 'schema = "arvg-trt/tolerances/v1"\n'


def by_name(rules: tuple[Rule, ...]) -> dict[str, Rule]:
    return {rule.metric: rule for rule in rules}


def moved(report: Report, drops: tuple[float, ...]) -> Report:
    engine = report.accuracy["engine"]
    each = [(v or 0.0) - d for v, d in zip(engine.psnr.each, drops, strict=True)]
    changed = msgspec.structs.replace(engine, psnr=Summary.of(each))
    return msgspec.structs.replace(report, accuracy={**report.accuracy, "engine": changed})


def test_limits_are_in_the_metrics_unit_in_points_or_of_the_baseline() -> None:
    found = by_name(parse_limits("psnr:0.1dB, kl:10%,top1:0.5pp,ssim:0.01,latency_ms:2 ms"))
    assert (found["psnr"].tolerance, found["psnr"].relative) == (0.1, False)
    assert (found["kl"].tolerance, found["kl"].relative) == (0.1, True)
    assert found["top1"].tolerance == pytest.approx(0.005) and not found["top1"].relative
    assert found["ssim"].tolerance == 0.01 and found["latency_ms"].tolerance == 2
    named = {"psnr", "kl", "top1", "ssim", "latency_ms"}
    assert {m for m, rule in found.items() if rule.required} == named
    assert {m for m, rule in found.items() if rule.decides is not False} == named


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("psnr", "not METRIC:AMOUNT"),
        ("", "not METRIC:AMOUNT"),
        ("psnr:0.1dB,", "not METRIC:AMOUNT"),
        ("psnr:-1dB", "is no amount"),
        ("psnr:nan", "is no amount"),
        ("psnr:1e400dB", "is no amount"),
        ("psnr:0.1ms", "is not in 'dB' or '%' of the baseline"),
        ("top1:0.1dB", "is not in 'pp' or '%' of the baseline"),
        ("pnsr:0.1dB", "no metric 'pnsr'"),
        ("psnr:1dB,psnr:2dB", "twice"),
    ],
)
def test_limits_that_cannot_be_read_are_refused(text: str, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_limits(text)
    assert what in caught.value.what and caught.value.do


def test_a_file_changes_some_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.toml"
    path.write_text(HEAD + 'psnr = "0.3 dB"\nspeedup = "inform"\nsite_sqnr_db = "1dB"\n')
    found, usual = by_name(read_tolerances(path)), by_name(RULES)
    assert found["psnr"].tolerance == 0.3 and found["speedup"].decides is False
    assert found["site_sqnr_db"].decides is True and found["kl"] == usual["kl"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('psnr = "0.3 dB"', "its schema is None"),
        ('schema = "arvg-trt/tolerances/v9"', "its schema is 'arvg-trt/tolerances/v9'"),
        (HEAD + 'lipps = "0.3"', "no metric 'lipps'"),
        (HEAD + "psnr = 0.3", "cannot be read"),
        (HEAD + "psnr = ", "cannot be read"),
        (HEAD + 'psnr = "a lot"', "is no amount"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "tolerances.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_tolerances(path)
    assert what in caught.value.what and caught.value.where == str(path)
    with pytest.raises(RecipeError, match="no such file"):
        read_tolerances(tmp_path / "none.toml")


def test_the_command_fails_by_what_the_limits_name(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report().report
    files = {
        "base": report,
        "worse": moved(report, (0.20, 0.21, 0.22)),
        "open": moved(report, (-0.9, 1.0, 0.3)),
    }
    paths = {name: tmp_path / f"{name}.json" for name in files}
    for name, made in files.items():
        paths[name].write_bytes(encode_report(made))
    limit = ("--baseline", paths["base"], "--max-regression")
    assert arvg("compare", paths["worse"], *limit, "psnr:0.1dB").code == 8
    assert arvg("compare", paths["worse"], *limit, "psnr:0.5dB").code == 0
    assert arvg("compare", paths["worse"], *limit, "ssim:1%").code == 0
    undecided = arvg("compare", paths["open"], *limit, "psnr:0.1dB", "--json")
    assert undecided.code == 13
    found = json.loads(undecided.out)
    assert found["undecided"] == ["psnr"] and not found["regressed"]
    (row,) = (row for row in found["rows"] if row["metric"] == "psnr")
    assert row["cells"][1]["verdict"] == "inconclusive" and row["cells"][1]["more"] > 0
    assert arvg("compare", paths["base"], paths["open"]).code == 0
    lost = arvg("compare", paths["base"], *limit, "kl:10%")
    assert lost.code == 13 and "Divergence of the logits" in lost.out
    assert_refused(arvg("compare", paths["base"], *limit, "psnr"), 3, "METRIC:AMOUNT")


def test_two_images_by_chance_fail_no_build(make_report: MakeReport) -> None:
    """Two images of one seed once differed by more than the tolerance, and a build failed."""
    report = make_report().report
    found = compare([("a", report), ("b", moved(report, (0.02, 0.6, 0.01)))])
    (row,) = (row for row in found.rows if row.rule.metric == "psnr")
    assert row.cells[1].change is not None and row.cells[1].change < -0.05
    assert row.cells[1].verdict == "inconclusive" and row.decides
    assert "psnr" not in {r.rule.metric for r in found.rows if r.cells[1].verdict == "worse"}
