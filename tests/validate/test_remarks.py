"""Remarks say what a headline hides: part of an output, a GPU's copy, an engine above its graph."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from arvg_trt.commands.support.figures import print_figures
from arvg_trt.runtime.sessions.placement import ON_CPU
from arvg_trt.validate.compare.compare import compare
from arvg_trt.validate.facts import ValidationFacts
from arvg_trt.validate.metrics.outputs import OutputAccumulator, OutputAccuracy
from arvg_trt.validate.remarks import hidden_parts, remarks
from arvg_trt.validate.report.compose import finite_metrics, judged
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.render import report_page, write_report
from arvg_trt.validate.report.schema import METRIC_NAMES, Report
from arvg_trt.validate.report.spread import figures
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.stage import StageResult

from .conftest import MakeReport


def output(noise: float, scores: float = 0.0) -> OutputAccuracy:
    """An output [1, 3, 50] with errors of `noise`: two channels near 100 and one of 1."""
    rng = np.random.default_rng(0)
    found = OutputAccumulator(parts=True)
    for k in range(8):
        exact = rng.standard_normal((1, 3, 50)) * np.array([100.0, 100.0, 1.0])[:, None]
        error = rng.standard_normal(exact.shape) * np.array([noise, noise, scores])[:, None]
        found.add(exact.astype(np.float32), (exact + error).astype(np.float32), f"s{k}")
    return found.result("g/y")


def of_outputs(make_report: MakeReport, **outputs: OutputAccuracy) -> Report:
    """A report of a user's own graphs, with one output of each candidate."""
    made = make_report().report
    data = msgspec.structs.replace(made.data, validation=tuple(f"s{k}" for k in range(8)))
    found = msgspec.structs.replace(
        made,
        accuracy={},
        data=data,
        outputs={name: (row,) for name, row in outputs.items()},
        ran={"int8/onnxruntime": ON_CPU.text},
    )
    return msgspec.structs.replace(found, figures=figures(found))


def with_gates(report: Report, *gates: str) -> Report:
    return judged(report, parse_gates(gates, METRIC_NAMES))


def test_a_part_that_the_whole_hides_is_said_with_its_channels(
    make_report: MakeReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = of_outputs(make_report, qdq=output(1.0, 0.2), engine=output(1.0, 0.2))
    (text,) = remarks(report)
    assert text.startswith("g/y: channel 2 (axis 1) has 14.")
    assert "below the whole output (39." in text and "an RMS of 1" in text
    assert text.endswith("set a gate on output_part_sqnr_db")
    page = report_page(report, [])
    assert f"G{text[1:]}." in page.warnings
    assert page.key_figures[0].detail.startswith("of the worst output; its worst part 14.")
    table = next(each for each in page.tables if each.title == "Outputs against FP32")
    assert table.header[-2:] == ("Worst part", "Its SQNR")
    assert str(table.rows[0][-2]).startswith("channel 2 (axis 1), RMS 1")
    assert str(table.rows[0][-1]).startswith("14.")
    (failed,) = with_gates(report, "output_part_sqnr_db>=30").gates
    assert failed.verdict == "failed" and failed.value == pytest.approx(14.0, abs=1)
    write_report(tmp_path, report, [])
    facts = ValidationFacts(metrics=finite_metrics(report), remarks=remarks(report))
    results = msgspec.to_builtins(facts)
    manifest = Manifest(stage="validate", inputs={}, options={}, versions={}, results=results)
    print_figures([StageResult(folder=tmp_path, manifest=manifest, skipped=False, seconds=1.0)])
    assert text in capsys.readouterr().out


def test_parts_that_are_as_good_as_the_whole_are_not_mentioned(make_report: MakeReport) -> None:
    report = of_outputs(make_report, engine=output(1.0, 0.01))
    assert list(hidden_parts(report)) == []
    older = msgspec.structs.replace(report.outputs["engine"][0], part=msgspec.UNSET)
    assert remarks(msgspec.structs.replace(report, outputs={"engine": (older,)})) == ()


def test_a_gate_that_passes_on_the_cpu_and_not_on_the_gpus_copy_is_named(
    make_report: MakeReport,
) -> None:
    made = of_outputs(make_report, qdq=output(1.0), twin=output(2.0), engine=output(1.0))
    report = with_gates(made, "output_sqnr_db>=37", "output_sqnr_db>=20", "output_sqnr_db>=38@95%")
    assert report.passed
    found = remarks(report)
    assert len(found) == 2
    passes = "gate output_sqnr_db>=37 passes on the engine for the CPU, and fails on the FP16 copy"
    assert found[0].startswith(passes)
    assert found[0].endswith("--gate 'twin.output_sqnr_db>=37' judges that")
    assert "'twin.output_sqnr_db>=38@95%'" in found[1]
    page = report_page(report, [])
    assert page.verdict.text == "Passed: all 3 gates, not on the FP16 copy for TensorRT"
    assert page.verdict.level == "warn" and f"G{found[0][1:]}." in page.warnings
    # A gate that names the copy, one that fails anyway, and a GPU that ran the engine itself.
    for gate in ("twin.output_sqnr_db>=20", "output_sqnr_db>=70", "output_sqnr_db>=20"):
        assert remarks(with_gates(made, gate)) == ()
    on_gpu = msgspec.structs.replace(made, ran={"int8/rtx-sm89": "cuda:0, TensorRT"})
    assert remarks(with_gates(on_gpu, "output_sqnr_db>=37")) == ()


def test_an_engine_closer_to_fp32_than_its_graph_is_said(make_report: MakeReport) -> None:
    report = of_outputs(make_report, qdq=output(2.0), engine=output(1.0))
    (text,) = remarks(report)
    assert text.startswith("the engine is 6.0") and "than its Q/DQ graph (33." in text
    assert text.endswith("a gate on qdq.output_sqnr_db judges that")
    assert any(text[1:] in note for note in report_page(report, []).notes)
    assert remarks(of_outputs(make_report, qdq=output(1.1), engine=output(1.0))) == ()


def test_compare_shows_the_copy_beside_and_fails_by_nothing_of_it(make_report: MakeReport) -> None:
    base = of_outputs(make_report, qdq=output(1.0), twin=output(1.0), engine=output(1.0))
    new = of_outputs(make_report, qdq=output(1.0), twin=output(3.0), engine=output(1.0))
    found = compare([("base", base), ("new", new)])
    row = next(row for row in found.rows if row.rule.metric == "twin.output_sqnr_db")
    assert row.cells[1].verdict == "worse" and not row.decides and not found.regressed
    assert row.rule.title == "SQNR of the worst output, FP16 copy for TensorRT"
    without = of_outputs(make_report, qdq=output(1.0), engine=output(1.0))
    names = [row.rule.metric for row in compare([("base", without), ("new", without)]).rows]
    assert "twin.output_sqnr_db" not in names
