"""Tests of what the benchmark of a GPU does before there is one: feeds, cases, its refusal."""

from __future__ import annotations

from pathlib import Path

import click.testing
import pytest

from arvg_trt.benchmarks.gpu import BATCHES, FORMATS, TIMED, Case, cases, feeds_of, main
from arvg_trt.runtime.devices import this_device
from arvg_trt.runtime.sessions.open import fast_session

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
