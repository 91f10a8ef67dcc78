"""A generator's report: what gates read, and what its page shows."""

from __future__ import annotations

import msgspec
import pytest

from arvg_trt.validate.measure.generator_accuracy import (
    FrechetRow,
    GeneratedImageAccuracy,
    GeneratorAccuracy,
)
from arvg_trt.validate.metrics.logits import LogitsAccuracy
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import Data, Report, metrics
from arvg_trt.validate.report.site_tables import site_charts

from ..conftest import MakeReport


def accuracy(kl: float, sites: dict[str, float | None]) -> GeneratorAccuracy:
    psnr_summary = Summary.of([30.0, 40.0])
    return GeneratorAccuracy(
        logits=LogitsAccuracy(
            kl=kl,
            top1=0.9,
            top5=0.8,
            sqnr_db=None,
            cross_entropy=2.5,
            cross_entropy_fp32=2.0,
            positions=20,
            tokens=10,
        ),
        sites=sites,
        pictures=GeneratedImageAccuracy(
            token_agreement=0.5,
            first_difference=(3, None),
            length=10,
            latent_sqnr_db=None,
            psnr_vs_fp32=psnr_summary,
            ssim_vs_fp32=None,
            frechet=(
                FrechetRow(
                    key="frechet_latent", features="latents", width=4, distance=0.1, floor=0.7
                ),
            ),
        ),
    )


@pytest.fixture
def report(make_report: MakeReport) -> Report:
    made = make_report().report
    names = ("seed 1, picture 0, class 4", "seed 1, picture 1, class 5")
    row = msgspec.structs.replace(made.latency["total"], batch=2, tokens=20)
    sites: dict[str, float | None] = {"up.0|conv": 31.0, "head": None}
    return msgspec.structs.replace(
        made,
        accuracy={},
        generation={"qdq": accuracy(0.1, sites), "engine": accuracy(0.2, {})},
        latency={"total": row, "tokens": row},
        data=Data(validation=names, calibration=("x",), pictures=names, sampling={"cfg": 1.5}),
    )


def test_gates_read_the_engine_but_sites_are_the_graphs(report: Report) -> None:
    found = metrics(report)
    assert (found["kl"], found["qdq.kl"], found["engine.kl"]) == (0.2, 0.1, 0.2)
    assert found["site_sqnr_db"] == found["qdq.site_sqnr_db"] == 31.0
    assert found["engine.site_sqnr_db"] is None
    assert found["logits_sqnr_db"] == float("inf")
    assert found["cross_entropy_rise"] == pytest.approx(0.5)
    assert (found["identical"], found["first_difference"]) == (0.5, 6.5)
    assert (found["frechet_latent"], found["frechet_features"]) == (0.1, None)
    assert found["ssim_vs_fp32"] is None and found["psnr_vs_fp32_min"] == 30.0
    assert found["latent_sqnr_db"] is None  # of tokens, not "no error at all"


def test_rates_are_what_the_median_round_makes_in_a_second(report: Report) -> None:
    tables = {table.title: table for table in report_page(report, []).tables}
    # FP32 takes 10 ms, the engine 5 ms
    assert tables["Rates"].rows == (
        (
            "Tokens a second, without the image decoder",
            "2000 (2000 to 2000)",
            "4000 (4000 to 4000)",
        ),
        ("Images a second", "200 (200 to 200)", "400 (400 to 400)"),
    )
    (row,) = tables["Fr\u00e9chet distance to FP32's images"].rows
    assert row == ("latents", "0.70000", "0.10000", "0.10000")
    assert "Not FID" in tables["Fr\u00e9chet distance to FP32's images"].caption
    assert [r[1] for r in tables["Image by image"].rows] == ["4", "none"]


def test_the_chart_has_what_each_site_loses_and_gives(report: Report) -> None:
    (chart,) = site_charts(report)
    assert report_page(report, []).charts[0] == chart
    assert chart.names == ("up.0|conv",)
    assert {s.label: s.values for s in chart.series} == {
        "Weight alone": (41.25,),
        "Input alone": (None,),
        "Output": (31.0,),
    }


def test_images_that_the_data_does_not_name_are_refused(report: Report) -> None:
    with pytest.raises(ValueError, match="made 2 images, the data names 1"):
        msgspec.structs.replace(
            report, data=Data(validation=("a",), calibration=("x",), pictures=("a",))
        )
