"""Several recipes of one model in one workspace: stages that they share run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import AccuracyError, InconclusiveError, RecipeError
from ..recipe.quantize import MAX_MEMORY
from ..recipe.recipe import Recipe
from ..workspace.stage import Reporter
from .run import check_recipe, require_extras, run_recipe


def run_sweep(
    recipes: Sequence[Recipe], reporter: Reporter, max_memory: int = MAX_MEMORY
) -> list[Path]:
    """Run every recipe; return the folders of their reports, in the order of the recipes.

    A gate that fails does not end the sweep: its report says so.

    Raises:
        RecipeError: recipes of several models, or of one name, or that calibrate or validate
            differently: their figures would not compare.
    """
    require_alike(recipes)
    for recipe in recipes:
        require_extras(recipe)
        check_recipe(recipe)
    folders = []
    for number, recipe in enumerate(recipes, 1):
        reporter.say(f"recipe {number} of {len(recipes)}: {recipe.name}")
        try:
            results = run_recipe(recipe, reporter, max_memory)
        except (AccuracyError, InconclusiveError) as error:
            reporter.warn(f"{recipe.name}: {error.what}")
            results = list(error.stages or ())
        folders.append(results[-1].folder)
    return folders


def aligned(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return the recipes in the first one's workspace, calibrated and validated as it is.

    Each keeps its gates: presets of one model may differ in samples, and no figure would compare.
    """
    first = recipes[0]
    return [
        msgspec.structs.replace(
            recipe,
            workspace=first.workspace,
            calibrate=first.calibrate,
            validate=msgspec.structs.replace(first.validate, gates=recipe.validate.gates),
        )
        for recipe in recipes
    ]


def require_alike(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError for recipes that cannot share a workspace, or whose figures differ."""
    twice = [name for name, count in Counter(r.name for r in recipes).items() if count > 1]
    if twice:
        raise RecipeError(f"two recipes are called {twice[0]}", do="give one another name")
    first = recipes[0]
    for recipe in recipes[1:]:
        for what, a, b in (
            ("model", first.model, recipe.model),
            ("checkpoint", first.checkpoint, recipe.checkpoint),
            ("weights", first.weights, recipe.weights),
            ("graphs", first.graphs, recipe.graphs),
            ("title", first.title, recipe.title),
            ("calibrate", first.calibrate, recipe.calibrate),
            ("validate", _ungated(first), _ungated(recipe)),
        ):
            if a != b:
                raise RecipeError(
                    f"{first.name} and {recipe.name} differ in {what}",
                    do="a sweep compares quantizations: give both the same",
                )


def _ungated(recipe: Recipe) -> object:
    return msgspec.structs.replace(recipe.validate, gates=())
