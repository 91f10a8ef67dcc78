"""The command that calibrates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipe.options import CalibrateOptions, with_changes
from .stage import perform, recipe_option, recipe_or_none
from .support import Place, json_option, workspace_argument

if TYPE_CHECKING:
    from ..calibrate.executors import ExecutorName


@click.command()
@workspace_argument
@click.argument("parts", nargs=-1, type=Place())
@recipe_option
@click.option("--images", help="Folder of images, or skimage:NAME,NAME.")
@click.option("--feeds", help="A .npz of arrays by input name, for graphs of your own.")
@click.option(
    "--value-range",
    type=(float, float),
    help="What float pictures of --feeds lie in. [default: +-16]",
)
@click.option("--labels", help="A generator's classes, e.g. 0-9,207. [default: drawn of all]")
@click.option("--samples", type=int, help="Number of crops, or pictures. [default: 32]")
@click.option("--batch-size", type=int, help="Samples in flight. [default: 1]")
@click.option("--seed", type=int, help="Seed of the crops, or pictures. [default: 0]")
@click.option("--size", type=int, help="Side of the square crops. [default: 256]")
@click.option(
    "--synthetic", is_flag=True, default=None, help="Calibrate on noise; marks the report."
)
@click.option("--samples-from", help="Samples that were saved: a workspace or folder.")
@click.option(
    "--dgc/--no-dgc", default=None, help="Choose a generator's rows by distance. [default: no]"
)
@click.option("--candidates", type=int, help="Pictures that DGC chooses from. [default: twice]")
@click.option(
    "--dgc-select",
    type=click.Choice(["ratio", "distance"]),
    help="Keep the first rows in the far ones' ratio, or the far ones. [default: ratio]",
)
@click.option("--shard", metavar="K/N", help="Part K of N of the samples, to be merged.")
@click.option(
    "--executor", type=click.Choice(["processes", "ray"]), help="Make shards at once, and merge."
)
@click.option("--workers", type=int, help="Shards of an executor. [default: one a processor]")
@click.option("--merge", is_flag=True, help="Make one of PARTS: workspaces or statistics files.")
@json_option
def calibrate(
    workspace: Path,
    parts: Sequence[Path],
    recipe_name: str | None,
    executor: ExecutorName | None,
    workers: int | None,
    merge: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Collect activation statistics of WORKSPACE's graphs on images.

    A generator's are collected on pictures that it makes itself. With --merge they are those of
    PARTS, that other processes or machines made of the same export.

    \b
    Example: arvg-trt calibrate out/ws --images photos/ --samples 64
             arvg-trt calibrate out/var --samples 64 --batch-size 8
             arvg-trt calibrate out/var --merge out/part1 out/part2
    """
    from ..calibrate.executors import Execution
    from ..calibrate.shards import merge_stage
    from ..pipeline.calibrate import calibrate_stage

    given = [name for name, value in changes.items() if value is not None]
    given += ["executor"] * bool(executor) + ["recipe"] * bool(recipe_name)
    if merge and given:
        raise click.UsageError(f"--merge takes no --{given[0].replace('_', '-')}: parts have it")
    if merge != bool(parts):
        raise click.UsageError("--merge and PARTS go together")
    if workers is not None and executor is None:
        raise click.UsageError("--workers is an executor's: give --executor")
    if merge:
        perform(workspace, as_json, lambda w, r: [merge_stage(w, parts, r)])
        return
    recipe = recipe_or_none(recipe_name)
    base = recipe.calibrate if recipe else CalibrateOptions()
    options = with_changes(base, **changes)
    execution = Execution.choose(executor, workers) if executor else None
    perform(workspace, as_json, lambda w, r: [calibrate_stage(w, options, r, execution)])
