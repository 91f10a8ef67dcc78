"""An engine with a site that is not what was planned is refused, unless it is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from arvg_trt.engines.facts import EngineRow
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused, leftovers
from ...minis.minis import Quantized

BFLOAT16 = ("--backend", "tensorrt_rtx", "--target", "sm89", "--half", "bfloat16")
MODULATION = [*(f"blocks.{k}.ada_lin.1" for k in range(6)), "head_nm.ada_lin.1"]


def test_weights_that_each_run_expands_are_refused_and_listed_where_they_are_allowed(
    quantized_of: Callable[[str], Quantized], tmp_path: Path
) -> None:
    """TensorRT for RTX 1.7 merges VAR's modulations in bfloat16, and expands their INT8 weights."""
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = tmp_path / "ws"
    shutil.copytree(quantized_of("var").workspace, workspace)
    assert arvg("quantize", workspace, "--name", "a8", "--adaln-bits", 8).code == 0
    build = ("build", workspace, "--name", "a8", *BFLOAT16)
    outcome = arvg(*build)
    assert_refused(outcome, 6, "condition.engine", "--allow-unproved", "expands the INT8 weight")
    assert "blocks.{0-5}.ada_lin.1" in outcome.err and str(tmp_path) not in outcome.err
    folder = workspace / "engines" / "a8" / "rtx-bf16-sm89"
    assert not folder.exists() and not leftovers(workspace)

    outcome = arvg(*build, "--allow-unproved")
    assert outcome.code == 0, outcome
    found = json.loads((folder / MANIFEST).read_text())["results"]["engines"]
    rows = {row["graph"]: msgspec.convert(row, EngineRow) for row in found}
    condition = rows["condition"]
    lost = [exception.site for exception in condition.exceptions]
    assert set(lost) <= set(MODULATION) and len(lost) >= 6
    assert condition.proof is not None
    assert condition.proof.weight_sites_planned == 7
    assert condition.proof.weight_sites_proved == 7 - len(lost)
    step = rows["step"]
    assert step.proof is not None and step.int8_sites_planned == step.int8_sites_proved == 25
    assert step.proof.shares["INT8"] > 0.7
    assert sum(step.proof.shares.values()) == pytest.approx(1)
    assert (step.proof.attentions, step.proof.split_attentions) == (6, ())
    assert sum(step.proof.constant_bytes.values()) < step.bytes

    given = ("--name", "a8", "--samples", 1, "--rounds", 0)
    outcome = arvg("validate", workspace, *given)
    assert outcome.code == 0, outcome
    report = (workspace / "validate" / "a8" / "report.md").read_text()
    assert "## What engines compute in" in report
    assert f"{7 - len(lost)} proved of 7" in report and "6 of 6" in report


def test_a_row_of_an_older_version_has_no_proof() -> None:
    row = {"backend": "b", "target": "sm89", "precision": "FP16", "graph": "g", "bytes": 1}
    row |= {"build_seconds": 1.0, "int8_sites_planned": 0, "int8_sites_proved": 0, "status": "s"}
    assert msgspec.convert(row, EngineRow).proof is None
