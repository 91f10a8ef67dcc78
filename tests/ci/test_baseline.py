"""A baseline is small, reads back, and is replaced by what is better alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from arvg_trt.validate.compare.compare import compare
from arvg_trt.validate.intervals.speeds import SPEEDS
from arvg_trt.validate.report.files import encode_report, load_report
from arvg_trt.validate.report.schema import Report, metrics

from ..command_line import arvg, assert_refused
from ..validate.conftest import GreyCodec, MakeReport, make_report

__all__ = ["make_report"]
Save = Callable[..., Path]


@pytest.fixture
def save(make_report: MakeReport, tmp_path: Path) -> Save:
    """Writes a report of a tokenizer whose engine errs that much, to a file of that name."""

    def write(file: str, offset: float = 0.02, gain: float = 1.0, **more: object) -> Path:
        report = make_report(engine=GreyCodec(offset=offset, gain=gain), **more).report
        path = tmp_path / file
        path.write_bytes(encode_report(report))
        return path

    return write


def test_a_baseline_compares_as_its_report_does_but_for_speed(save: Save, tmp_path: Path) -> None:
    source, file = save("report.json"), tmp_path / "b" / "base.json"
    outcome = arvg("baseline", "save", source, "-o", file, "--json")
    assert json.loads(outcome.out) == {"written": str(file), "model": "grey-mini", "name": "w8a8"}
    report, kept = load_report(source), load_report(file)
    speeds = set(SPEEDS)
    assert {k: v for k, v in metrics(report).items() if k not in speeds} == {
        k: v for k, v in metrics(kept).items() if k not in speeds
    }
    found = compare([("base", kept), ("new", report)])
    assert {row.cells[1].verdict for row in found.rows if row.rule.metric not in speeds} == {"same"}
    assert not found.regressed and not found.warnings
    text = file.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert file.stat().st_size < source.stat().st_size


def test_latencies_stay_when_asked_for_and_then_in_updates(save: Save, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    arvg("baseline", "save", save("slow.json", engine_ms=9.0), "-o", file, "--with-latency")
    assert load_report(file).latency["total"].engine.p50_ms == 9.0
    outcome = arvg("baseline", "update", file, save("fast.json", engine_ms=5.0))
    assert outcome.code == 0 and outcome.out.endswith(f"{file}: replaced\n")
    assert load_report(file).latency["total"].engine.p50_ms == 5.0


def test_a_file_that_is_there_is_not_overwritten(save: Save, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    file.write_text("mine")
    assert_refused(arvg("baseline", "save", save("r.json"), "-o", file), 9, "already", "update")
    assert file.read_text() == "mine"


def test_a_failed_gate_is_no_baseline_in_silence(save: Save, tmp_path: Path) -> None:
    failed, file = save("r.json", gates=("psnr>=90", "ssim>=0")), tmp_path / "base.json"
    for command in (("save", failed, "-o", file), ("save", failed, "-o", file, "--json")):
        outcome = arvg("baseline", *command)
        assert outcome.code == 8 and "failed: gate psnr>=90 (psnr is " in outcome.err
        assert not file.exists()
    assert arvg("baseline", "save", failed, "-o", file, "--accept-failed-gates").code == 0
    before = file.read_bytes()
    better = save("b.json", offset=0.0, gates=("psnr>=90",))
    assert arvg("baseline", "update", file, better).code == 8
    assert file.read_bytes() == before
    accepted = ("--accept-failed-gates",)
    perhaps = arvg("baseline", "update", file, better, *accepted)
    assert perhaps.code == 0 and "a metric may be worse" in perhaps.out
    assert file.read_bytes() == before
    assert arvg("baseline", "update", file, better, *accepted, "--accept-regression").code == 0
    assert file.read_bytes() != before


def test_an_update_takes_the_better_and_refuses_the_worse(save: Save, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    good, bad = save("good.json", offset=0.0), save("bad.json", offset=0.3, gain=0.8)
    assert arvg("baseline", "save", bad, "-o", file).code == 0
    outcome = arvg("baseline", "update", file, good, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["state"] == "replaced"
    kept = file.read_bytes()

    outcome = arvg("baseline", "update", file, bad)
    assert outcome.code == 8 and "Regressed: PSNR to the original" in outcome.out
    assert outcome.err.startswith(f"error: {file}: the report is worse")
    failed = json.loads(arvg("baseline", "update", file, bad, "--json").out)
    assert failed["error"]["exit_code"] == 8
    assert file.read_bytes() == kept

    outcome = arvg("baseline", "update", file, good)
    assert outcome.code == 0 and "stays as it is" in outcome.out
    assert arvg("baseline", "update", file, bad, "--accept-regression").code == 0
    assert metrics(load_report(file))["psnr"] == metrics(load_report(bad))["psnr"]


def test_small_losses_do_not_add_up(save: Save, tmp_path: Path) -> None:
    source, file = save("r.json"), tmp_path / "base.json"
    arvg("baseline", "save", source, "-o", file)
    before = file.read_bytes()
    report = load_report(source)
    assert report.accuracy["engine"].psnr_drop is not None
    engine = msgspec.structs.replace(
        report.accuracy["engine"], psnr_drop=report.accuracy["engine"].psnr_drop + 0.04
    )
    source.write_bytes(encode_report(with_engine(report, engine)))
    outcome = arvg("baseline", "update", file, source, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["state"] == "kept"
    assert file.read_bytes() == before


def with_engine(report: Report, engine: object) -> Report:
    return msgspec.structs.replace(report, accuracy=report.accuracy | {"engine": engine})


def test_another_quantization_or_model_is_refused(save: Save, tmp_path: Path) -> None:
    source, file = save("r.json"), tmp_path / "base.json"
    arvg("baseline", "save", source, "-o", file)
    named = save("named.json", name="w4a16")
    assert_refused(arvg("baseline", "update", file, named), 7, "w4a16", "w8a8", "save a new one")
    other = msgspec.structs.replace(load_report(source), model="other")
    source.write_bytes(encode_report(other))
    assert_refused(arvg("baseline", "update", file, source), 7, "model other", "save a new one")


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "arvg-trt/report/v9"}'])
def test_what_is_no_report_is_refused(text: str, save: Save, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    assert_refused(arvg("baseline", "save", broken, "-o", tmp_path / "b.json"), 9, "broken.json")
    assert_refused(arvg("baseline", "update", broken, save("r.json")), 9, "broken.json")
    assert_refused(arvg("baseline", "save", tmp_path, "-o", tmp_path / "b.json"), 9, "neither")


def test_a_workspace_s_report_is_verified_first(repository: Path, report: Path) -> None:
    workspace = repository / "out" / "my ws"
    assert arvg("baseline", "save", workspace, "-o", "a.json").out == "a.json: handmade, int8\n"
    assert arvg("baseline", "save", report.parent, "-o", "b.json").code == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    unknown = arvg("baseline", "save", workspace, "--name", "w4", "-o", "c.json")
    assert_refused(unknown, 9, "arvg-trt validate")
    report.write_bytes(report.read_bytes().replace(b'"int8"', b'"int9"'))
    assert_refused(arvg("baseline", "save", workspace, "-o", "c.json"), 9, "report.json")
    named = arvg("baseline", "save", report, "--name", "int8", "-o", "c.json")
    assert_refused(named, 9, "--name")
