"""Say what a run would do, and define the command that says what changed since the last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..workspace.workspace import Workspace
from .support.console import print_json
from .support.groups import command
from .support.options import json_option, workspace_argument
from .support.perform import name_option, recipe_option

if TYPE_CHECKING:
    from ..explain.dry_run import PlannedStage
    from ..explain.why import StageName
    from ..recipe.recipe import Recipe

STAGES = ("export", "calibrate", "quantize", "build", "validate")


@command()
@click.argument("stage", type=click.Choice(STAGES))
@workspace_argument
@recipe_option
@name_option
@json_option
def why(
    stage: StageName, workspace: Path, recipe_name: str | None, name: str | None, as_json: bool
) -> None:
    """Say what changed since STAGE of WORKSPACE ran.

    Inputs, options, versions and outputs are compared; the options with the recipe that is given,
    or with that of the last run in the workspace.

    \b
    Example: arvg-trt why quantize out/demo
             arvg-trt why build out/var-mini --name w8a8
    """
    from ..explain.why import why_stage

    say_who_works(workspace)
    found = why_stage(workspace, stage, name, recipe_name)
    if as_json:
        print_json({"folders": found})
        return
    for each in found:
        click.echo(f"{each.folder}: {each.state}")
        for change in each.changes:
            click.echo(f"  {change}")
        if each.note:
            click.echo(f"  {each.note}")


def say_who_works(workspace: Path) -> None:
    """Say on stderr that another process changes a workspace that is read without its lock."""
    worker = Workspace(workspace).worker()
    if worker is not None:
        text = f"process {worker} works in {workspace}: this is of what is there now"
        click.echo(text, err=True)


def print_plan(recipe: Recipe, as_json: bool) -> None:
    """Print what a run of the recipe would do, stage by stage."""
    from ..explain.dry_run import plan_run

    say_who_works(Path(recipe.workspace))
    planned = plan_run(recipe)
    if as_json:
        print_json({"planned": planned})
        return
    for row in planned:
        click.echo(f"{row.stage:<10} {row.state:<10}  {Path(recipe.workspace) / row.folder}")
        if row.state == "runs":
            click.echo(f"{'':<12}{row.makes}")
            for line in (*fetch_lines(row), *(f"because {text}" for text in row.because)):
                click.echo(f"{'':<12}{line}")
            click.echo(f"{'':<12}{needs_text(row)}")


def fetch_lines(row: PlannedStage) -> list[str]:
    """Return what is fetched, with its bytes."""
    if not row.fetch:
        return []
    size = "size unknown" if row.fetch_bytes is None else f"{row.fetch_bytes / 1e9:.2f} GB"
    lines = [f"fetches {', '.join(row.fetch)}: {size}"]
    if row.fetch_checked is False:
        lines.append("not checked: the Hugging Face Hub cannot be reached, so it may not have them")
    return lines


def needs_text(row: PlannedStage) -> str:
    """Return what is known of seconds, memory and disk, with where it comes from."""
    known = [
        *([] if row.seconds is None else [duration(row.seconds, row.source == "estimate")]),
        *([] if row.memory is None else [f"{row.memory / 1e9:.1f} GB of memory"]),
        *([] if row.disk is None else [f"{row.disk / 1e6:,.0f} MB of disk"]),
    ]
    if not known:
        return "time, memory and disk are known after a first run here"
    like = f" from a run of {row.like} on {row.machine}" if row.like else ""
    like = f" from {row.like_folder} here" if row.like_folder else like
    return ", ".join(known) + (f" ({row.source}{like})" if row.source else "")


def duration(seconds: float, estimated: bool) -> str:
    """Return seconds as people say them; those of an estimate without what it cannot know."""
    if not estimated:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {max(1, round(seconds / 60))} min"
