"""Stored keys and values from the command line to engines, images and the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arvg_trt.runtime.sessions.open import fast_session

from ..command_line import arvg, assert_refused
from ..families.rar.models import TinyRar

CHEAP = ("--rounding", "nearest", "--smoothing", 0.5)


@pytest.fixture(scope="module")
def workspace(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a quantization whose caches are INT8."""
    workspace = tmp_path_factory.mktemp("kv") / "ws"
    shutil.copytree(tiny_rar.workspace, workspace)
    for args in (
        ("calibrate", workspace, "--samples", 4, "--batch-size", 4),
        ("quantize", workspace, "--name", "kv8", "--kv-cache", "int8", *CHEAP),
        ("build", workspace, "--name", "kv8"),
    ):
        outcome = arvg(*args)
        assert outcome.code == 0, outcome
    return workspace


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_engine_stores_what_the_plan_says(workspace: Path, tmp_path: Path) -> None:
    plan = read(workspace / "quantize/kv8/plan.json")
    assert {cache["type"] for cache in plan["caches"]} == {"int8"}
    assert all(cache["keys"] and cache["values"] for cache in plan["caches"])
    rows = read(workspace / "quantize/kv8/manifest.json")["results"]["caches"]
    assert [row["name"] for row in rows] == [cache["name"] for cache in plan["caches"]]
    engine = fast_session(workspace / "engines/kv8/onnxruntime/step.onnx")
    stored = {engine.types[name] for name in engine.inputs if name.startswith("past_")}
    assert stored == {"int8"}
    outcome = arvg(
        *("generate", workspace / "engines/kv8/onnxruntime", "--labels", "1,2", "-o", tmp_path)
    )
    assert outcome.code == 0 and len(list(tmp_path.glob("*.png"))) == 3, outcome  # and a sheet


def test_the_report_has_the_caches_and_the_memory_of_a_batch(workspace: Path) -> None:
    few = ("--samples", 2, "--batch-size", 2, "--rounds", 1, "--warmup", 0)
    outcome = arvg("validate", workspace, "--name", "kv8", *few)
    assert outcome.code == 0, outcome
    report = read(workspace / "validate/kv8/report.json")
    assert {row["type"] for row in report["caches"]} == {"int8"}
    fp32, engine = report["memory"]["fp32"], report["memory"]["engine"]
    assert fp32["images"] == 2 and fp32["cache"] == 4 * engine["cache"] > 0
    page = (workspace / "validate/kv8/report.html").read_text()
    assert "Keys and values of all tokens" in page and "Stored keys and values" in page


def test_a_plan_of_another_model_is_refused_and_nothing_is_written(
    workspace: Path, tmp_path: Path
) -> None:
    plan = read(workspace / "quantize/kv8/plan.json")
    plan["caches"][0]["name"] = "layers.0.attention"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    outcome = arvg("quantize", workspace, "--name", "odd", "--plan", tmp_path / "plan.json")
    assert_refused(outcome, 3, "blocks.0.attn has no cache entry")
    assert not (workspace / "quantize/odd").exists()
