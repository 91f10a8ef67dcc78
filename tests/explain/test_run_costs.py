"""A first run is estimated from the nearest run that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arvg_trt.explain import run_costs
from arvg_trt.explain.dry_run import STAGES
from arvg_trt.explain.recipes import adapt_recipe
from arvg_trt.explain.run_costs import LIBRARIES, RunCost, expected, measured_runs
from arvg_trt.families.variants import find_model
from arvg_trt.recipe.base import with_changes
from arvg_trt.recipe.file import load_recipe
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.workspace.times import Took

from ..command_line import arvg

TOOK = Took(seconds=120.0, bytes=2_000_000, memory=3_000_000_000)


def recipe_of(model: str, samples: int | None = None) -> Recipe:
    recipe = adapt_recipe("var-w8a8", load_recipe("var-w8a8"), model)
    return with_changes(recipe, calibrate=with_changes(recipe.calibrate, samples=samples))


def measured(model: str, **stages: Took) -> RunCost:
    return RunCost(
        model=model,
        preset="var-w8a8",
        samples=64,
        machine="2 cores",
        measured_on="2026-12-01",
        stages=stages,
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[RunCost]:
    found: list[RunCost] = []
    monkeypatch.setattr(run_costs, "measured_runs", lambda: tuple(found))
    return found


def test_the_model_itself_is_taken_as_it_was_measured(runs: list[RunCost]) -> None:
    runs += [measured("var-d20", quantize=TOOK), measured("var-d16", quantize=TOOK)]
    found = expected(recipe_of("var-d16"), "quantize")
    assert found is not None
    assert (found.seconds, found.memory, found.disk) == (120.0, 3_000_000_000, 2_000_000)
    assert found.like == "var-d16"


def test_the_nearest_of_the_family_is_scaled_by_its_parameters(runs: list[RunCost]) -> None:
    runs += [measured("var-mini", export=TOOK), measured("var-d16", export=TOOK)]
    found = expected(recipe_of("var-d20"), "export")
    scale = find_model("var-d20").parameters / find_model("var-d16").parameters
    assert found is not None and found.like == "var-d16" and 1.5 < scale < 3
    assert found.seconds == pytest.approx(120 * scale)
    assert found.memory == pytest.approx(LIBRARIES + (3e9 - LIBRARIES) * scale)
    assert found.disk == pytest.approx(2e6 * scale, abs=1)


def test_a_calibration_takes_longer_with_more_samples(runs: list[RunCost]) -> None:
    runs.append(measured("var-d16", calibrate=TOOK, quantize=TOOK))
    more = expected(recipe_of("var-d16", samples=256), "calibrate")
    same = expected(recipe_of("var-d16", samples=256), "quantize")
    assert more is not None and more.seconds == pytest.approx(4 * 120)
    assert same is not None and same.seconds == 120.0


@pytest.mark.parametrize("other", ["var-mini", "rar-b"])
def test_nothing_is_said_from_afar_or_from_another_family(runs: list[RunCost], other: str) -> None:
    runs.append(measured(other, quantize=TOOK))
    assert expected(recipe_of("var-d16"), "quantize") is None
    runs.append(measured("var-d16", export=TOOK))  # a stage that was not measured
    assert expected(recipe_of("var-d16"), "quantize") is None


def test_what_the_package_holds_is_of_models_and_presets_that_there_are() -> None:
    assert measured_runs()
    for run in measured_runs():
        find_model(run.model)
        load_recipe(run.preset)
        assert {*run.stages} and {*run.stages} <= {*STAGES}
        assert all(took.seconds > 0 and took.bytes > 0 for took in run.stages.values())


def test_a_dry_run_in_a_new_workspace_says_what_it_will_take(tmp_path: Path) -> None:
    words = ("run", "var-w8a8", "--model", "var-d20", "--checkpoint", "FoundationVision/var")
    rest = ("--workspace", tmp_path / "ws", "--dry-run")
    rows = json.loads(arvg(*words, *rest, "--json").out)["planned"]
    (run,) = (run for run in measured_runs() if run.model == "var-d16")
    assert {"export", "calibrate"} <= {*run.stages}
    for row in rows:
        known = row["stage"] in run.stages
        assert (row["like"] == "var-d16") is known
        assert not known or (row["source"] == "estimate" and row["seconds"] > 0 < row["disk"])
    text = arvg(*words, *rest).out
    said = f"(estimate from a run of var-d16 on {run.machine})"
    assert text.count(said) == len(run.stages)
