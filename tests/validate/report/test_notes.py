"""The sentences of a report that say where its engine ran."""

from __future__ import annotations

import msgspec

from arvg_trt.runtime.sessions.placement import CUDA, ON_CPU, Placement
from arvg_trt.validate.report.notes import report_notes

from ..conftest import MakeReport

REST = "all else ran on the CPU, but FP32 where timed"


def test_what_else_ran_on_the_cpu_is_said_of_a_gpu_alone(make_report: MakeReport) -> None:
    made = make_report().report
    on_gpu = msgspec.structs.replace(made, ran={"int8/rtx": Placement(CUDA, 1).text})
    assert f"engines/int8/rtx ran on cuda:1, {CUDA}; {REST}." in report_notes(on_gpu)
    on_cpu = msgspec.structs.replace(made, ran={"int8/onnxruntime": ON_CPU.text})
    notes = report_notes(on_cpu)
    assert "engines/int8/onnxruntime ran on cpu." in notes
    assert not [note for note in notes if REST in note]
