"""The sentences of a report that say where its engine ran, and how it differs from Q/DQ."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from arvg_trt.commands.support.figures import print_figures
from arvg_trt.runtime.sessions.placement import BY_OPENVINO, CUDA, ON_CPU, Placement
from arvg_trt.validate.facts import ValidationFacts
from arvg_trt.validate.intervals.figure import Figure
from arvg_trt.validate.report.compose import finite_metrics
from arvg_trt.validate.report.notes import engine_gap, report_notes
from arvg_trt.validate.report.render import write_report
from arvg_trt.validate.report.schema import Report
from arvg_trt.validate.report.spread import figures
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.stage import StageResult

from ..conftest import GreyCodec, MakeReport

SHIFTED = "the middle of its calibrated range"
REST = "all else ran on the CPU, but FP32 where timed"


def test_what_else_ran_on_the_cpu_is_said_of_a_gpu_alone(make_report: MakeReport) -> None:
    made = make_report().report
    on_gpu = msgspec.structs.replace(made, ran={"int8/rtx": Placement(CUDA, 1).text})
    assert f"engines/int8/rtx ran on cuda:1, {CUDA}; {REST}." in report_notes(on_gpu)
    on_cpu = msgspec.structs.replace(made, ran={"int8/onnxruntime": ON_CPU.text})
    notes = report_notes(on_cpu)
    assert "engines/int8/onnxruntime ran on cpu." in notes
    assert not [note for note in notes if REST in note]


def test_what_shifted_means_is_said_where_a_site_is(make_report: MakeReport) -> None:
    made = make_report().report
    assert not any(SHIFTED in note for note in report_notes(made))
    site = msgspec.structs.replace(made.sites[0], activation="INT8 per-tensor, channels shifted")
    shifted = msgspec.structs.replace(made, sites=(site, *made.sites[1:]))
    assert sum(SHIFTED in note for note in report_notes(shifted)) == 1


def drop(low: float, value: float, high: float) -> Figure:
    return Figure(value=value, n=12, low=low, high=high, method="bca")


def with_drops(report: Report, qdq: Figure, engine: Figure, place: Placement = ON_CPU) -> Report:
    found = {**report.figures, "qdq.psnr_drop": qdq, "engine.psnr_drop": engine}
    return msgspec.structs.replace(report, figures=found, ran={"int8/cpu": place.text})


def test_an_engine_far_below_its_qdq_graph_is_said_with_what_to_do(make_report: MakeReport) -> None:
    made = make_report().report
    far = with_drops(made, drop(0.01, 0.03, 0.05), drop(2.1, 3.0, 3.9))
    text = engine_gap(far)
    assert text.startswith("the engine is 2.97 dB below its Q/DQ graph on the same images: it also")
    assert "calibrated ranges; calibrate on more samples, or on larger crops" in text
    assert f"T{text[1:]}." in report_notes(far)
    other = with_drops(made, drop(0.01, 0.03, 0.05), drop(2.1, 3.0, 3.9), BY_OPENVINO)
    assert "what convolutions return" not in engine_gap(other)
    assert "try another --backend" in engine_gap(other)


@pytest.mark.parametrize(
    ("qdq", "engine"),
    [
        (drop(0.01, 0.03, 0.05), drop(0.1, 0.2, 0.3)),  # near
        (drop(0.01, 0.03, 2.2), drop(2.1, 3.0, 3.9)),  # the intervals meet
        (drop(0.01, 0.03, 0.05), Figure(value=3.0, n=1, why="one image")),
        (drop(2.1, 3.0, 3.9), drop(0.01, 0.03, 0.05)),  # the engine is better
    ],
)
def test_an_engine_that_is_near_or_not_surely_below_is_not_mentioned(
    make_report: MakeReport, qdq: Figure, engine: Figure
) -> None:
    report = with_drops(make_report().report, qdq, engine)
    assert engine_gap(report) == ""
    assert not any("below its Q/DQ graph" in note for note in report_notes(report))


def test_graphs_of_ones_own_are_judged_by_decibels(make_report: MakeReport) -> None:
    figures = {"qdq.output_sqnr_db": drop(39, 40, 41), "engine.output_sqnr_db": drop(20, 21, 22)}
    ran = {"int8/onnxruntime": ON_CPU.text}
    made = msgspec.structs.replace(make_report().report, accuracy={}, figures=figures, ran=ran)
    assert engine_gap(made).startswith("the engine is 19.00 dB below its Q/DQ graph")
    assert engine_gap(made).endswith("calibrate on more samples like those of use")


def test_the_gap_is_measured_and_printed(
    make_report: MakeReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_report(engine=GreyCodec(gain=0.3))
    report = msgspec.structs.replace(made.report, figures=figures(made.report))
    assert "below its Q/DQ graph" in engine_gap(report)
    write_report(tmp_path, report, made.pictures)
    facts = ValidationFacts(metrics=finite_metrics(report), gap=engine_gap(report))
    manifest = Manifest(
        stage="validate",
        inputs={},
        options={},
        versions={},
        results=msgspec.to_builtins(facts),
    )
    print_figures([StageResult(folder=tmp_path, manifest=manifest, skipped=False, seconds=1.0)])
    assert engine_gap(report) in capsys.readouterr().out.splitlines()
