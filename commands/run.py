"""Define the command that runs every stage of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..recipe.file import load_recipe
from .recipes import model_options
from .support import completion
from .support.console import ConsoleReporter, print_json
from .support.figures import figures_of_failures, print_figures, with_sites
from .support.groups import command, option
from .support.options import json_option, memory_option
from .support.tracking import experiment_option, mlflow_option, tracking
from .why import print_plan

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


@command()
@click.argument("recipe_name", metavar="RECIPE", shell_complete=completion.recipes)
@model_options
@memory_option
@mlflow_option
@experiment_option
@option(
    "--dry-run",
    group="Plan",
    is_flag=True,
    help="Say what would run, and what it takes as far as known; fetch and change nothing.",
)
@json_option
def run(
    recipe_name: str,
    model: str | None,
    checkpoint: str | None,
    workspace: str | None,
    max_memory: int,
    mlflow_uri: str | None,
    experiment: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run every stage of RECIPE, skipping what is up to date.

    With --model another model of the recipe's family; gates are then left out, since they hold
    what was measured on the recipe's own.

    \b
    Example: arvg-trt run cosmos-mini-int8
             arvg-trt run var-w8a8 --model var-d16 --checkpoint FoundationVision/var
             arvg-trt run mine.toml --dry-run
    """
    from ..explain.recipes import adapt_recipe, require_weights
    from ..pipeline.run import run_recipe
    from ..recipe.paths import require_paths

    written = load_recipe(recipe_name)
    recipe = adapt_recipe(recipe_name, written, model, checkpoint, workspace)
    require_weights(recipe_name, recipe)
    require_paths(recipe, recipe_name)
    if dry_run:
        print_plan(recipe, as_json)
        say_left_out(written, recipe)
        return
    with (
        figures_of_failures(as_json),
        tracking(mlflow_uri, experiment) as log,
        ConsoleReporter(quiet=as_json) as reporter,
    ):
        results = run_recipe(recipe, reporter, max_memory)
        log(results)
    if as_json:
        print_json(with_sites(results))
    else:
        print_figures(results)
    say_left_out(written, recipe)


def say_left_out(written: Recipe, recipe: Recipe) -> None:
    """Say, behind all else, that a recipe's gates did not go along to another model."""
    if written.validate.gates and not recipe.validate.gates:
        measured = f"those of the recipe were measured on {written.model}"
        click.echo(f"no gates are checked for {recipe.model}: {measured}", err=True)
