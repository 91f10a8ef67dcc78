"""A recipe's plan is followed as one of the command line is, and a changed one runs the stage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arvg_trt.errors import RecipeError
from arvg_trt.explain.recipes import adapt_recipe
from arvg_trt.recipe.file import load_recipe

from ..command_line import Finished, arvg, assert_refused, digests


@pytest.fixture
def plan(workspace: Path) -> Path:
    """The plan of the run, with one more site in high precision."""
    path = workspace.parent / "plan.json"
    written = json.loads((workspace / "quantize" / "int8" / "plan.json").read_text())
    next(s for s in written["sites"] if s["weight"]).update(weight=None, activation=None)
    path.write_text(json.dumps(written))
    return path


@pytest.fixture
def recipe(plan: Path, finished: Finished, workspace: Path) -> Path:
    path = workspace.parent / "mine.toml"
    text = re.sub(r'workspace = ".*"', f'workspace = "{workspace}"', finished.recipe.read_text())
    path.write_text(text + f'\n[quantize]\nplan = "{plan}"\n')
    return path


def state(recipe: Path) -> tuple[str, list[str]]:
    outcome = arvg("run", recipe, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    row = json.loads(outcome.out)["planned"][2]
    return row["state"], row["because"]


def test_a_run_follows_it_and_runs_again_when_it_changes(
    recipe: Path, plan: Path, workspace: Path
) -> None:
    said, because = state(recipe)
    assert said == "runs"
    assert [text.rpartition(" ")[0] for text in because] == ["input plan: none ->"]
    assert arvg("quantize", workspace, "--recipe", recipe).code == 0
    assert state(recipe) == ("up to date", [])
    by_recipe = digests(workspace / "quantize" / "int8")
    assert arvg("quantize", workspace, "--plan", plan).code == 0
    assert digests(workspace / "quantize" / "int8") == by_recipe
    plan.write_text(plan.read_text() + "\n")
    (found,) = json.loads(arvg("why", "quantize", workspace, "--recipe", recipe, "--json").out)[
        "folders"
    ]
    assert [(change["kind"], change["name"]) for change in found["changes"]] == [("input", "plan")]


def test_the_command_line_s_plan_goes_before_the_recipe_s(
    recipe: Path, plan: Path, workspace: Path
) -> None:
    other = workspace / "quantize" / "int8" / "plan.json"
    of_run = json.loads(other.read_text())
    wins = ("--name", "wins", "--plan", other)
    assert arvg("quantize", workspace, "--recipe", recipe, *wins).code == 0
    assert arvg("quantize", workspace, "--recipe", recipe, "--name", "mine").code == 0
    found = {
        name: json.loads((workspace / "quantize" / name / "plan.json").read_text())
        for name in ("wins", "mine")
    }
    floats = {
        name: sum(site["weight"] is None for site in made["sites"]) for name, made in found.items()
    }
    before = sum(site["weight"] is None for site in of_run["sites"])
    assert floats == {"wins": before, "mine": before + 1}


def test_a_plan_that_cannot_be_followed_is_refused_before_any_stage(
    recipe: Path, plan: Path
) -> None:
    plan.write_text("{}")
    for more in ((), ("--dry-run",)):
        assert_refused(arvg("run", recipe, *more), 3, "plan.json", "sites")


def test_the_recipe_s_formats_are_not_asked_of_a_target_beside_a_plan(
    recipe: Path, workspace: Path
) -> None:
    """The build checks what a plan quantizes to."""
    fp8 = 'quantize_method = "fp8"\n'
    recipe.write_text(recipe.read_text() + fp8)
    assert state(recipe)[0] == "runs"
    without = recipe.with_name("without.toml")
    without.write_text(re.sub(r"plan = .*\n", "", recipe.read_text()))
    assert_refused(arvg("run", without, "--dry-run"), 6, "wants fp8")


def test_a_plan_does_not_go_to_another_model(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="is of the sites of cosmos-mini-di8x8"):
        adapt_recipe(str(recipe), load_recipe(recipe), "cosmos-di8x8")
