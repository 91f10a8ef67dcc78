"""Where strips put values, and the charts of a report that are made of them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from arvg_trt.validate.measure.generator_accuracy import GeneratedImageAccuracy, GeneratorAccuracy
from arvg_trt.validate.metrics.logits import LogitsAccumulator
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.report.charts.chart import NARROW, WIDE
from arvg_trt.validate.report.charts.drawing import svg
from arvg_trt.validate.report.charts.latency import latency_charts
from arvg_trt.validate.report.charts.positions import MOST_POINTS, position_charts, shares_alike
from arvg_trt.validate.report.charts.strips import Strip, Strips
from arvg_trt.validate.report.schema import Data

from ...conftest import MakeReport


def strips(*rows: Strip) -> Strips:
    return Strips(title="Times", caption="", unit="ms", rows=rows, series=())


def drawn(width: int, *rows: Strip) -> ElementTree.Element:
    return ElementTree.fromstring(svg(strips(*rows), width))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_dots_lie_on_one_axis_from_zero(width: int) -> None:
    found = drawn(width, Strip("a", (0.0, 50.0), "soft"), Strip("b", (25.0, 100.0), "accent"))
    zero, half, quarter, full = (float(dot.attrib["cx"]) for dot in found.iter("circle"))
    assert half - zero == pytest.approx(2 * (quarter - zero), abs=0.2)
    assert full - zero == pytest.approx(2 * (half - zero), abs=0.2)
    assert full <= width
    heights = [float(dot.attrib["cy"]) for dot in found.iter("circle")]
    assert heights[0] == heights[1] < heights[2] == heights[3]


def test_marks_are_the_percentiles() -> None:
    values = tuple(float(v) for v in np.random.default_rng(3).uniform(5, 90, 40))
    found = drawn(WIDE, Strip("a", values, "soft"))
    told = [e.text for e in found.iter("title") if e.text and ": p" in e.text]
    expected = [f"a: p{q} {np.percentile(values, q):.2f} ms" for q in (50, 90, 99)]
    assert told == expected


def test_one_value_that_is_zero_can_be_drawn() -> None:
    assert len(list(drawn(WIDE, Strip("a", (0.0,), "soft")).iter("circle"))) == 1


@pytest.mark.parametrize("values", [(), (math.nan,), (1.0, math.inf), (-1.0,)])
def test_what_cannot_be_drawn_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        svg(strips(Strip("a", values, "soft")))


def test_latency_has_a_row_a_part_and_side(make_report: MakeReport) -> None:
    report = make_report().report
    (found,) = latency_charts(report)
    assert [row.label for row in found.rows] == ["total, FP32", "total, engine"]
    assert found.rows[1].values == report.latency["total"].engine.samples_ms
    assert latency_charts(msgspec.structs.replace(report, latency={})) == ()


def test_an_image_stays_on_fp32s_tokens_until_its_first_other_one() -> None:
    assert shares_alike([0, None, 2, 2], 4) == [75.0, 75.0, 25.0, 25.0]


def logits(length: int, seed: int = 0) -> GeneratorAccuracy:
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(2, length, 7))
    tally = LogitsAccumulator()
    tally.add(p, p + rng.normal(size=p.shape) / 9, np.zeros((2, length), int), np.ones(2, bool))
    pictures = GeneratedImageAccuracy(
        token_agreement=0.5,
        first_difference=(0, None),
        length=length,
        latent_sqnr_db=None,
        psnr_vs_fp32=Summary.of([30.0, math.inf]),
        ssim_vs_fp32=None,
    )
    return GeneratorAccuracy(logits=tally.result(), pictures=pictures)


@pytest.mark.parametrize("length", [1, 5, MOST_POINTS, 1000])
def test_positions_are_few_points_whose_mean_is_the_figure(
    make_report: MakeReport, length: int
) -> None:
    made = logits(length)
    report = msgspec.structs.replace(
        make_report().report,
        accuracy={},
        generation={"qdq": made},
        data=Data(validation=("a", "b"), calibration=(), pictures=("a", "b")),
    )
    apart, still = position_charts(report)
    assert made.logits is not None
    points = apart.series[0].values
    assert len(points) == len(apart.names) <= MOST_POINTS
    if length <= MOST_POINTS:
        assert np.mean(points) == pytest.approx(made.logits.kl, rel=1e-9)
        assert apart.names[0] == "1" and apart.names[-1] == str(length)
    else:
        assert apart.names[0] == "1\u20138" and apart.names[-1] == "993\u20131000"
        assert "the mean of 8 neighbours" in apart.caption and len(points) == 125
    assert set(still.series[0].values) == {50.0}
    assert svg(apart) and svg(still, NARROW)


def test_tokenizers_have_no_positions(make_report: MakeReport) -> None:
    assert position_charts(make_report().report) == ()
