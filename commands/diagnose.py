"""Define the command that finds out why something fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..recipe.build import BuildOptions
from ..workspace.workspace import Workspace
from .support.console import ConsoleReporter, print_json
from .support.groups import command
from .support.options import PathArgument, json_option, struct_options, workspace_argument
from .support.perform import (
    name_option,
    quantization_name,
    recipe_option,
    recipe_or_none,
    selected_builds,
)


@command()
@click.argument("what", type=click.Choice(["build-failure"]))
@workspace_argument
@recipe_option
@name_option
@click.option("-o", "--output", type=PathArgument(), required=True, help="ONNX file to write.")
@struct_options(BuildOptions)
@json_option
def diagnose(
    what: str,
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    output: Path,
    as_json: bool,
    **changes: Any,
) -> None:
    """Find the smallest part of a graph that a builder refuses, and write it as ONNX.

    \b
    Example: arvg-trt diagnose build-failure out/ws --backend tensorrt_rtx --target rtx4090 \\
                 -o failing.onnx
    """
    from ..explain.diagnose import diagnose_build_failure

    recipe = recipe_or_none(recipe_name)
    called = quantization_name(name, recipe)
    builds = selected_builds(recipe, changes)
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
