"""Run a stage for a command: its recipe, name and lock, and the lines it prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...errors import RecipeError
from ...recipe.base import check_name, with_changes
from ...recipe.build import BuildOptions
from ...recipe.file import load_recipe
from ...recipe.paths import require_paths
from ...recipe.recipe import Recipe
from ...workspace.stage import StageResult
from ...workspace.workspace import Workspace
from . import completion
from .console import ConsoleReporter, print_json
from .figures import quantized_lines, with_sites

recipe_option = click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE",
    shell_complete=completion.recipes,
    help="A preset or a TOML file.",
)
name_option = click.option(
    "--name", default=None, help="Name of the quantization. [default: the recipe's, or int8]"
)


def recipe_or_none(name: str | None) -> Recipe | None:
    return None if name is None else load_recipe(name)


def recipe_of_stage(name: str | None, stage: str, changes: Mapping[str, Any]) -> Recipe | None:
    """Return a recipe whose files for a stage are there, but those that `changes` replace."""
    recipe = recipe_or_none(name)
    if recipe is not None and name is not None:
        replaced = [key for key, value in changes.items() if value is not None]
        require_paths(recipe, name, f"[{stage}]", replaced)
    return recipe


def quantization_name(name: str | None, recipe: Recipe | None) -> str:
    if name is None:
        return recipe.name if recipe else "int8"
    try:
        check_name(name)
    except ValueError as error:
        raise RecipeError(str(error), where="--name") from error
    return name


def selected_builds(recipe: Recipe | None, changes: dict[str, Any]) -> list[BuildOptions]:
    """Return the recipe's builds, or the one that the command line asks for."""
    backend = changes["backend"]
    changed = [name for name, value in changes.items() if value is not None]
    if recipe is None:
        return [with_changes(BuildOptions(), **changes)]
    if backend is None:
        if changed:
            option = changed[0].replace("_", "-").replace("targets", "target")
            raise RecipeError(f"--{option} beside a recipe needs --backend", do="add --backend")
        return list(recipe.build)
    base = next((b for b in recipe.build if b.backend == backend), BuildOptions())
    return [with_changes(base, **changes)]


def perform(
    workspace: Path,
    as_json: bool,
    work: Callable[[Workspace, ConsoleReporter], Sequence[StageResult]],
) -> Sequence[StageResult]:
    """Run stages under the workspace's lock, print what they made, and return it."""
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        results = work(opened, reporter)
    print_results(results, as_json)
    return results


def print_results(results: Sequence[StageResult], as_json: bool) -> None:
    """Print what stages made, and where."""
    if as_json:
        print_json(with_sites(results))
        return
    from ...engines.facts import proof_line

    for result in results:
        took = "up to date" if result.skipped else f"{result.seconds:.1f} s"
        click.echo(f"{result.manifest.stage}: {took}, {result.folder}")
        if result.manifest.stage == "build" and (proof := proof_line(result.manifest)):
            click.echo(proof)
        if result.manifest.stage == "quantize":
            click.echo("\n".join(quantized_lines(result)))
