"""The sentences of a report that say where its engine ran."""

from __future__ import annotations

import msgspec

from arvg_trt.runtime.sessions.placement import CUDA, ON_CPU, Placement
from arvg_trt.validate.report.notes import report_notes

from ..conftest import MakeReport

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
