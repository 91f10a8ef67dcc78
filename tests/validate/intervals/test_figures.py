"""Each figure is what its samples make, and has an interval or says why not."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from arvg_trt.validate.intervals.figure import COUNTED, SAME_SEED, WITHOUT_INTERVAL, plain
from arvg_trt.validate.intervals.figures import LOGITS, NOT_KEPT, PICTURES, TOKENIZER, sampled
from arvg_trt.validate.intervals.sampled import Sampled
from arvg_trt.validate.intervals.speeds import SPEEDS
from arvg_trt.validate.measure.generator_accuracy import GENERATION_NAMES, GeneratorAccuracy
from arvg_trt.validate.metrics.logits import LogitsAccumulator
from arvg_trt.validate.metrics.outputs import OutputAccumulator
from arvg_trt.validate.metrics.sites import KEPT, SiteAccumulator
from arvg_trt.validate.quality.reconstruction import PAIR_NAMES
from arvg_trt.validate.report.schema import METRIC_NAMES, Report, metrics
from arvg_trt.validate.report.spread import figure, figures

from ..conftest import GreyCodec, MakeReport


def require_law(report: Report, candidate: str) -> int:
    """The statistic of all samples is the figure that gates read."""
    count = 0
    for name, value in metrics(report).items():
        found = sampled(report, name) if name.startswith(f"{candidate}.") else ""
        if value is not None and isinstance(found, Sampled):
            made = float(found.statistic(found.counted))
            assert made == pytest.approx(value, rel=1e-9, abs=1e-12), name
            count += 1
    return count


def test_figures_of_a_tokenizer_are_made_of_their_samples(make_report: MakeReport) -> None:
    assert require_law(make_report().report, "engine") == len(TOKENIZER) - 2 * len(
        PAIR_NAMES
    )  # not asked for
    continuous = make_report(engine=GreyCodec(offset=0.3, gain=0.8)).report
    assert require_law(continuous, "engine") >= 7


def with_outputs(report: Report, seed: int = 0) -> Report:
    rng = np.random.default_rng(seed)
    logits, floats, whole = LogitsAccumulator(), OutputAccumulator(), OutputAccumulator()
    for k in range(5):
        fp32 = rng.normal(0, 2, (1, 6, 9)).astype(np.float32)
        own = fp32 + rng.normal(0, 0.2 * (k + 1), fp32.shape).astype(np.float32)
        tokens = rng.integers(0, 9, (1, 6))
        for has_class in (True, False):
            logits.add(fp32, own, tokens, np.array([has_class]), f"image {k}")
        floats.add(fp32, own, f"image {k}")
        whole.add(tokens, tokens * (tokens > 2), f"image {k}")
    made = GeneratorAccuracy(logits=logits.result())
    outputs = (floats.result("g/y"), whole.result("g/z"))
    return msgspec.structs.replace(report, generation={"qdq": made}, outputs={"engine": outputs})


def test_figures_of_logits_and_outputs_are_made_of_their_samples(make_report: MakeReport) -> None:
    report = with_outputs(msgspec.structs.replace(make_report().report, accuracy={}))
    assert require_law(report, "qdq") == len(LOGITS)
    assert require_law(report, "engine") == 3
    found = figure(report, "qdq.top1")
    assert found is not None and found.n == 5 and found.method == "exact"


def with_sites(report: Report, count: int) -> Report:
    """The Q/DQ graphs with sites of 40, 39, ... dB, of `count` images each, one without error."""
    rng, sites = np.random.default_rng(1), SiteAccumulator()
    for k in range(count):
        fp32 = rng.normal(0, 1 + 0.1 * k, (1, 50))
        for n in range(12):
            noise = rng.normal(0, 10 ** (-(40 - n) / 20), fp32.shape)
            sites.add(f"site {n}", f"image {k}", fp32, fp32 + noise)
        sites.add("exact", f"image {k}", fp32, fp32)
    qdq = msgspec.structs.replace(
        report.accuracy["qdq"], sites=sites.decibels(), worst_sites=sites.worst()
    )
    return msgspec.structs.replace(report, accuracy={**report.accuracy, "qdq": qdq})


@pytest.mark.parametrize(("count", "method"), [(4, "t"), (12, "bca")])
def test_the_worst_site_has_an_interval_of_its_samples(
    make_report: MakeReport, count: int, method: str
) -> None:
    report = with_sites(make_report().report, count)
    assert len(report.accuracy["qdq"].worst_sites) == KEPT
    found = sampled(report, "site_sqnr_db")
    assert isinstance(found, Sampled)
    made = float(found.statistic(found.counted))
    assert made == pytest.approx(metrics(report)["site_sqnr_db"], rel=1e-9)
    got = figure(report, "site_sqnr_db")
    assert got is not None and (got.n, got.method) == (count, method)
    assert got.low is not None and got.high is not None and got.low <= made <= got.high
    assert got.high - got.low < 6 and got.low > 20  # 29 dB, of 50 values an image


def test_the_worst_site_of_an_older_report_has_no_interval(make_report: MakeReport) -> None:
    report = with_sites(make_report().report, 4)
    qdq = msgspec.structs.replace(report.accuracy["qdq"], worst_sites={})
    old = msgspec.structs.replace(report, accuracy={**report.accuracy, "qdq": qdq})
    found = figure(old, "site_sqnr_db")
    assert found is not None and (found.low, found.why, found.n) == (None, NOT_KEPT, 0)


def test_every_metric_has_samples_or_a_reason() -> None:
    """A metric that is added without either says so in the report; this lists them all."""
    known = {*TOKENIZER, *LOGITS, *PICTURES, *WITHOUT_INTERVAL, *COUNTED, *SPEEDS}
    known |= {
        "site_sqnr_db",
        "output_sqnr_db",
        "output_cosine",
        "output_equal",
        "condition_sqnr_db",
    }
    assert {plain(name) for name in METRIC_NAMES} <= known | {"noise_sqnr_db"}
    assert set(SAME_SEED) <= {*GENERATION_NAMES}


def test_a_figure_without_an_interval_says_why(make_report: MakeReport) -> None:
    found = figures(make_report().report)
    for name, each in found.items():
        assert (each.low is None) == (each.why is not None), name
        assert each.low is None or each.high is None or each.low <= each.high
    assert found["engine.psnr_min"].why == WITHOUT_INTERVAL["psnr_min"]
    assert found["engine.psnr_min"].n == found["engine.psnr"].n == 3
    assert "compression" not in found and found["speedup"].n == 10


def test_images_without_any_error_have_an_infinite_figure(make_report: MakeReport) -> None:
    found = figure(make_report(engine=GreyCodec()).report, "psnr_vs_fp32")
    assert found is not None and found.value is None and found.low is None
    assert found.why == "no error in any of 3 samples"


def test_a_report_without_sums_has_the_intervals_of_its_images_alone(
    make_report: MakeReport,
) -> None:
    report = make_report().report
    bare = {k: msgspec.structs.replace(a, sums={}) for k, a in report.accuracy.items()}
    old = msgspec.structs.replace(report, accuracy=bare)
    psnr, tokens = figure(old, "psnr"), figure(old, "token_agreement")
    assert psnr is not None and psnr.low is not None
    assert tokens is not None and (tokens.low, tokens.why) == (None, NOT_KEPT)


def test_gates_at_another_level_have_another_interval(make_report: MakeReport) -> None:
    report = make_report().report
    report = msgspec.structs.replace(report, figures=figures(report))
    wide, narrow = figure(report, "psnr", 0.99), figure(report, "psnr", 0.8)
    stored = figure(report, "psnr")
    assert wide and narrow and stored
    lengths = [math.dist([f.low or 0], [f.high or 0]) for f in (narrow, stored, wide)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[2]
