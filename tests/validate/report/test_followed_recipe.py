"""The recipe in a report is that of its stages, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from arvg_trt.recipe.file import load_recipe
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.validate.report.compose import followed
from arvg_trt.validate.report.files import load_report

from ...command_line import Finished, arvg


def options_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {
        "quantize": msgspec.to_builtins(recipe.quantize),
        "validate": msgspec.to_builtins(recipe.validate),
    }


def test_a_recipe_is_named_only_where_the_stages_had_its_options() -> None:
    recipe = load_recipe("var-w8a8")
    options = options_of(recipe)
    found = followed(recipe, "w8a8", options)
    assert found is not None and found["quantize"]["exclude"] == ["head"]
    assert msgspec.convert(found, Recipe) == recipe
    assert followed(None, "w8a8", options) is None
    assert followed(recipe, "other", options) is None
    by_hand = {**options, "quantize": {**options["quantize"], "weight_bits": 6}}
    assert followed(recipe, "w8a8", by_hand) is None
    other_gates = {**options, "validate": {**options["validate"], "gates": ["kl<=1"]}}
    assert followed(recipe, "w8a8", other_gates) is None


def test_a_run_writes_its_recipe_and_a_validation_by_hand_does_not(
    finished: Finished, workspace: Path
) -> None:
    written = load_report(finished.workspace / "validate" / "int8").recipe
    assert written is not None and written["validate"]["gates"] == ["compression>=3"]
    assert written["calibrate"]["images"].endswith("calibration")
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0, "--skip-engine")
    outcome = arvg("validate", workspace, "--name", "int8", *options, "--gate", "compression>=2")
    assert outcome.code == 0, outcome
    report = json.loads((workspace / "validate" / "int8" / "report.json").read_text())
    assert report["recipe"] is None
