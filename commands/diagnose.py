"""Define the commands that find out which sites cost accuracy, and why a build fails."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click
import msgspec

from ..errors import RecipeError, WorkspaceError
from ..recipe.base import COUNT, with_changes
from ..recipe.build import BuildOptions
from ..recipe.commands import DiagnoseOptions
from ..recipe.file import load_recipe
from ..recipe.recipe import Recipe
from ..recipe.validate import ValidateOptions
from ..workspace.workspace import RECIPE_FILE, Workspace, require_workspace
from .support.console import ConsoleReporter, print_json
from .support.groups import DefaultGroup, GroupedCommand, option
from .support.options import Bytes, PathArgument, json_option, struct_options, workspace_argument
from .support.perform import (
    name_option,
    quantization_name,
    recipe_option,
    recipe_or_none,
    selected_builds,
)

HELD_OUT = ("images", "feeds", "labels", "seed", "size", "threads")
SAMPLES = (
    "How many samples to take, the first ones: half of them rank the sites, the rest measures. "
    "[default: all images or arrays that are given, at most 32; else 4, which a generator makes or "
    "the calibration has saved]"
)


@click.group(cls=DefaultGroup, default="sites")
def diagnose() -> None:
    """Find the sites that cost accuracy, or that fail a build.

    `arvg-trt diagnose WORKSPACE` is short for `arvg-trt diagnose sites WORKSPACE`.

    \b
    Example: arvg-trt diagnose out/demo --name int8 --images held_out/
             arvg-trt diagnose build-failure out/ws -o failing.onnx
    """


@diagnose.command("sites", cls=GroupedCommand)
@workspace_argument
@recipe_option
@name_option
@struct_options(ValidateOptions, only=HELD_OUT)
@option("--samples", group="Held-out samples", type=click.IntRange(1, COUNT.most), help=SAMPLES)
@struct_options(DiagnoseOptions)
@option(
    "--max-memory",
    group="Work",
    type=Bytes(),
    default="1GiB",
    help="Memory that outputs, and constants of changed graphs, may take. [default: 1GiB]",
)
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    default=None,
    help="Folder to write. [default: diagnose/NAME in the workspace]",
)
@json_option
def diagnose_sites(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    max_memory: int,
    output: Path | None,
    as_json: bool,
    **changes: Any,
) -> None:
    """Measure each site of a quantization; say which to raise.

    Writes diagnosis.json, .md and .html, and plan.json with the first sites raised. Without
    held-out samples, which a generator makes itself, it measures on those of the calibration and
    says so; a workspace that `run` made has its recipe's.

    \b
    Example: arvg-trt diagnose sites out/demo --name int8 --images held_out/ --raise 3
             arvg-trt quantize out/demo --name better --plan out/demo/diagnose/int8/plan.json
    """
    from ..explain.site_diagnosis import diagnose_workspace
    from ..validate.diagnose.render import terminal_lines, warnings, write_diagnosis
    from ..workspace.files import atomic_folder

    if output is not None and os.path.lexists(output):
        raise WorkspaceError("is there already", where=str(output), do="name a new folder with -o")
    own = {key: changes.pop(key) for key in list(changes) if key not in (*HELD_OUT, "samples")}
    recipe = recipe_or_none(recipe_name)
    called = quantization_name(name, recipe)
    options = held_out_options(recipe or last_recipe(workspace, called), changes)
    asked = with_changes(DiagnoseOptions(), **own)
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        found = diagnose_workspace(opened, called, options, asked, reporter, max_memory)
        folder = output or opened.folder("diagnose", called)
        with atomic_folder(folder) as made:
            write_diagnosis(made, found.diagnosis, found.plan)
        for text in warnings(found.diagnosis):
            reporter.warn(text)
    if as_json:
        print_json({"diagnosis": found.diagnosis, "folder": folder})
        return
    for line in terminal_lines(found.diagnosis):
        click.echo(line)
    click.echo(str(folder))
    plan = folder / "plan.json"
    if plan.is_file():
        words = ["arvg-trt", "quantize", str(workspace), "--name", "raised", "--plan", str(plan)]
        count = len(found.diagnosis.raised)
        which = "this site" if count == 1 else f"all {count} sites"
        click.echo(f"with {which} raised: {shlex.join(words)}")


def last_recipe(workspace: Path, name: str | None) -> Recipe | None:
    """Return the recipe that a workspace was last run by, if it is of this quantization, or any."""
    file = workspace / RECIPE_FILE
    recipe = load_recipe(str(file)) if file.is_file() else None
    return recipe if recipe is not None and name in (None, recipe.name) else None


def held_out_options(recipe: Recipe | None, changes: dict[str, Any]) -> ValidateOptions:
    """Return which samples are measured on: those of a recipe or the options.

    How many of them is for the command alone to say: it runs each site on each.
    """
    base = recipe.validate if recipe else ValidateOptions()
    return with_changes(msgspec.structs.replace(base, samples=None), **changes)


def failed_builds(
    workspace: Path, name: str, recipe: Recipe | None, changes: dict[str, Any]
) -> list[BuildOptions]:
    """Return the builds that may have failed: what is asked for, else all by TensorRT.

    Those are known of the recipe, else of the engines in the workspace.

    Raises:
        RecipeError: nothing is asked for, and none is known.
    """
    from ..explain.diagnose import built_by_tensorrt

    if changes["backend"] is None and changes["targets"] is None:
        builds = [build for build in (recipe.build if recipe else ()) if not build.on_cpu]
        if builds := builds or built_by_tensorrt(workspace, name):
            return [with_changes(build, **changes) for build in builds]
        raise RecipeError(
            f"no build by TensorRT is known of {name}: a build that failed leaves nothing behind",
            where=str(workspace),
            do="name the one that failed, say --backend tensorrt_rtx --target rtx4090",
        )
    changes["backend"] = changes["backend"] or "tensorrt_rtx"
    return selected_builds(recipe, changes)


@diagnose.command("build-failure", cls=GroupedCommand)
@workspace_argument
@recipe_option
@name_option
@click.option("-o", "--output", type=PathArgument(), required=True, help="ONNX file to write.")
@option(
    "--backend",
    group="Builder",
    type=click.Choice(["tensorrt_rtx", "tensorrt"]),
    help="The builder that failed. [default: those of the recipe, of the workspace's last run or "
    "of its engines; with --target tensorrt_rtx]",
)
@struct_options(BuildOptions, only=("targets", "half", "image_size", "max_batch"))
@json_option
def build_failure(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    output: Path,
    as_json: bool,
    **changes: Any,
) -> None:
    """Write the smallest part of a graph that a builder refuses.

    It is an ONNX file of fixed shapes, for a report to NVIDIA.

    \b
    Example: arvg-trt diagnose build-failure out/ws -o failing.onnx
             arvg-trt diagnose build-failure out/ws --backend tensorrt_rtx --target rtx4090 \\
                 -o failing.onnx
    """
    from ..explain.diagnose import diagnose_build_failure

    require_workspace(workspace)
    recipe = recipe_or_none(recipe_name) or last_recipe(workspace, name)
    called = quantization_name(name, recipe)
    builds = failed_builds(workspace, called, recipe, changes)
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        failures = (
            diagnose_build_failure(opened, called, options, output, reporter) for options in builds
        )
        found = next((failure for failure in failures if failure is not None), None)
    if as_json:
        print_json({"failure": found})
    elif found is None:
        click.echo("every graph builds with fixed shapes")
    else:
        sites = f" (sites {', '.join(found.sites)})" if found.sites else ""
        click.echo(
            f"{found.graph}, {', '.join(found.targets)}: {len(found.nodes)} of {found.of} nodes "
            f"fail{sites}: {', '.join(found.nodes[:8])}{' ...' if len(found.nodes) > 8 else ''}"
        )
        click.echo(f"{found.error}\n{found.file}")
