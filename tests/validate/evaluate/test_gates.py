"""Gates of `evaluate`: what is refused before an image is made, what fails, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.runtime.sampling import Sampling
from arvg_trt.validate.evaluate.distribution import Distribution
from arvg_trt.validate.evaluate.gates import evaluation_gates, gate_results
from arvg_trt.validate.evaluate.shards import EvaluationPlan, open_plan
from arvg_trt.validate.metrics.kid import Kid

from ...command_line import Outcome, arvg, assert_refused
from ...families.rar.models import TinyRar
from .test_run import colour_network

RNG = np.random.default_rng(6)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[object, ...]:
    """The arguments of an evaluation of images, which has every figure."""
    for name, high in (("own", 256), ("reference", 200)):
        np.savez(tmp_path / name, arr_0=RNG.integers(0, high, (30, 8, 8, 3), dtype=np.uint8))
    network = colour_network(tmp_path / "colour.onnx")
    reference = ("--reference", tmp_path / "reference.npz")
    return ("evaluate", tmp_path / "own.npz", "--features", network, *reference)


def fid_of(outcome: Outcome) -> float:
    found: float = json.loads(outcome.out)["distribution"]["fid"]
    return found


def test_a_figure_within_its_gate_and_within_its_band_passes(sets: tuple[object, ...]) -> None:
    fid = fid_of(arvg(*sets, "--json"))
    gates = ("--gate", f"fid<={fid + 1}", "--gate", f"{fid - 1}<=fid<={fid + 1}")
    outcome = arvg(*sets, *gates, "--gate", "precision>=0")
    assert outcome.code == 0, outcome
    assert outcome.out.count(": passed") == 3


def test_a_gate_that_fails_ends_with_8_and_the_figures_are_printed(
    sets: tuple[object, ...],
) -> None:
    fid = fid_of(arvg(*sets, "--json"))
    gates = ("--gate", f"fid<={fid - 1}", "--gate", "recall>=0")
    outcome = arvg(*sets, *gates)
    assert outcome.code == 8 and outcome.err.count("\n") == 1
    assert f"error: {sets[1]}: gate fid<={fid - 1} failed (fid is {fid:.6g}" in outcome.err
    assert "recall" not in outcome.err
    assert "FID" in outcome.out and ": failed" in outcome.out and ": passed" in outcome.out
    outcome = arvg(*sets, *gates, "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 8 and found["error"]["exit_code"] == 8
    assert found["distribution"]["fid"] == pytest.approx(fid)
    assert [gate["verdict"] for gate in found["gates"]] == ["failed", "passed"]


def test_what_was_not_measured_or_is_nan_fails() -> None:
    texts = ("fid<=1e9", "kid>=-1", "sfid<=1")
    gates = evaluation_gates(texts, "net.onnx", "reference.npz")
    kid = Kid(mean=float("nan"), deviation=0.0, subset=9)
    found = gate_results(gates, Distribution(images=9, fid=3.0, kid=kid))
    assert [gate.passed for gate in found] == [True, False, False]
    assert not any(gate.passed for gate in gate_results(gates, None))


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (3, "there is no metric 'psnr' of an evaluation", ("--gate", "psnr>=3")),
        (3, "fid has no interval", ("--gate", "fid<=3@95%")),
        (3, "is not METRIC OPERATOR NUMBER", ("--gate", "fid")),
    ],
)
def test_gates_that_cannot_be_checked_are_refused(
    sets: tuple[object, ...], code: int, words: str, arguments: tuple[str, ...]
) -> None:
    assert_refused(arvg(*sets, *arguments), code, words)


def test_gates_without_what_they_need_are_refused_before_an_image_is_made(
    sets: tuple[object, ...], tiny_rar: TinyRar, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    generated = ("evaluate", tiny_rar.workspace, "-o", output, "--count", 4)
    assert_refused(arvg(*generated, "--gate", "fid<=3"), 3, "nothing is measured without a network")
    alone = sets[2:4]
    outcome = arvg(*generated, *alone, "--gate", "fid<=3")
    assert_refused(outcome, 3, "fid compares with a reference")
    assert not output.exists()
    model = onnx.load(tmp_path / "colour.onnx")
    del model.graph.output[1:]
    onnx.save(model, tmp_path / "pool.onnx")
    poor = ("--features", tmp_path / "pool.onnx")
    outcome = arvg(*generated, *poor, "--gate", "inception_score>=3")
    assert_refused(outcome, 5, "has no output logits, which inception_score needs")
    assert not output.exists()


def test_a_folder_is_not_gone_on_with_on_another_device(tmp_path: Path) -> None:
    plan = EvaluationPlan(
        model="m",
        count=2,
        labels=(0,),
        seed=0,
        sampling=Sampling(cfg=0.0, top_k=0, top_p=1.0),
        batch_size=1,
        shard_size=1,
    )
    open_plan(tmp_path, plan)
    open_plan(tmp_path, plan)
    other = msgspec.structs.replace(plan, device="cuda:0, CUDAExecutionProvider")
    with pytest.raises(WorkspaceError, match="begun with other device"):
        open_plan(tmp_path, other)
