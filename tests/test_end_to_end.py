"""Every stage on a tiny graph, in one process and some seconds: what `make check` runs of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arvg_trt import run_recipe
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.recipe.validate import ValidateOptions

from .families.custom.models import CLASSES, TOKENS, handmade_transformer


def arrays(path: Path, count: int, seed: int) -> str:
    tokens = np.random.default_rng(seed).integers(0, CLASSES, (count, TOKENS))
    np.savez(path, tokens=tokens)
    return str(path)


def test_a_graph_is_exported_calibrated_quantized_built_and_validated(tmp_path: Path) -> None:
    recipe = Recipe(
        model="onnx",
        workspace=str(tmp_path / "ws"),
        name="int8",
        graphs=(str(handmade_transformer(tmp_path / "handmade.onnx")),),
        calibrate=CalibrateOptions(feeds=arrays(tmp_path / "calibration.npz", 8, 1), samples=8),
        validate=ValidateOptions(
            feeds=arrays(tmp_path / "validation.npz", 4, 2),
            rounds=0,
            gates=("output_sqnr_db>=20",),
        ),
    )
    report = run_recipe(recipe)
    assert report.passed
    assert {"engine", "qdq"} <= report.outputs.keys()
    graphs = {path.parent.name for path in (tmp_path / "ws").rglob("*.onnx")}
    assert graphs == {"export", "int8", "onnxruntime"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("*.onnx")}
    assert run_recipe(recipe) == report
    assert before == {path: path.stat().st_mtime_ns for path in before}
