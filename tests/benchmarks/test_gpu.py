"""Tests of what the benchmark of a GPU does before there is one: feeds, cases, its refusal."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import click.testing
import pytest

from arvg_trt.benchmarks import gpu
from arvg_trt.benchmarks.common import QuietReporter
from arvg_trt.benchmarks.gpu import (
    BATCHES,
    FORMATS,
    TIMED,
    Case,
    build_or_say,
    cases,
    feeds_of,
    main,
    open_case,
)
from arvg_trt.errors import BundleError
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.runtime.devices import this_device
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.workspace.workspace import Workspace

from ..families.var.toy_var import ToyVar


@pytest.mark.skipif(bool(this_device().gpus), reason="this machine has a GPU")
@pytest.mark.parametrize("option", [(), ("--prepare",)])
def test_without_a_gpu_it_says_in_one_line_that_it_has_not_run(
    option: tuple[str, ...], tmp_path: Path
) -> None:
    found = click.testing.CliRunner().invoke(main, [str(tmp_path / "new"), *option])
    assert found.exit_code == 7
    (line,) = found.output.splitlines()
    assert line.startswith(f"benchmarks.gpu: has not run: {this_device().driver_problem}")
    assert not (tmp_path / "new").exists()


def test_every_graph_is_measured_in_every_format_and_batch() -> None:
    every = list(cases())
    assert len(every) == len(set(every)) == len(BATCHES) * len(FORMATS) * (2 + 3 + 3)
    assert {(each.model, each.graph) for each in every} == {
        (model, graph) for model, graphs in TIMED.items() for graph in graphs
    }
    assert {each.tokens for each in every if each.model == "rar-b"} == {64, 128, 256}


def test_feeds_are_what_the_graphs_take(tmp_path: Path, tiny_rar, tiny_di) -> None:  # type: ignore[no-untyped-def]
    """They run on the CPU, with as many tokens as a case has."""
    step = fast_session(ToyVar().save(tmp_path / "var") / "step.onnx", 1)
    fed = feeds_of(step, Case("var-d16", "step", "fp32", 3, 9))
    assert step.run(fed)["logits"].shape[:2] == (3, 9)
    step = fast_session(tiny_rar.folder / "step.onnx", 1)
    fed = feeds_of(step, Case("rar-b", "step", "fp32", 2, 5))
    assert fed["past_key.0"].shape[2] == 5 and fed["position_ids"].tolist() == [5]
    assert step.run(fed)["logits"].shape[:2] == (2, 1)
    encoder = fast_session(tiny_di.folder / "encoder.onnx", 1)
    fed = feeds_of(encoder, Case("cosmos-di8x8", "encoder", "fp32", 1, 1024))
    assert encoder.run(fed)["indices"].shape == (1, 32, 32)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs arvg-trt[rtx]")
def test_a_gpu_that_takes_no_engine_is_said_and_preparing_goes_on(
    tmp_path: Path,
    tiny_rar,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TensorRT for RTX compiles nothing for an H100."""
    shutil.copytree(tiny_rar.workspace, tmp_path / "rar-b")
    options = BuildOptions(backend="tensorrt_rtx", targets=("sm90",))
    with Workspace(tmp_path / "rar-b") as opened:
        build_or_say(opened, "fp16", options, QuietReporter())
    line = capsys.readouterr().err.splitlines()[-1]  # a warning comes before it
    assert line.startswith("rar-b: fp16 is not built: ") and "sm90" in line
    assert not list((tmp_path / "rar-b").glob("engines/fp16/rtx-*"))


def test_without_an_engine_the_graphs_of_a_format_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    made = tmp_path / "var-d16"
    for folder in ("export", "quantize/int8"):
        ToyVar().save(made / folder)
    opened = open_case(tmp_path, Case("var-d16", "step", "int8", 1, 4))
    assert opened.path == made / "quantize" / "int8" / "step.onnx"
    with pytest.raises(BundleError, match="neither an engine nor a graph in fp16"):
        open_case(tmp_path, Case("var-d16", "step", "fp16", 1, 4))
    (made / "engines" / "int8" / "rtx-sm89").mkdir(parents=True)
    with pytest.raises(BundleError, match="rtx-sm89"):  # an engine comes first
        open_case(tmp_path, Case("var-d16", "step", "int8", 1, 4))
