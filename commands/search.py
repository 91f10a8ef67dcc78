"""Define the command that searches a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import RecipeError
from ..recipe.base import check_name, with_changes
from ..recipe.commands import SearchOptions
from ..recipe.file import load_recipe
from ..recipe.quantize import QuantizeOptions
from .support.console import ConsoleReporter, print_json
from .support.groups import command
from .support.options import json_option, struct_options, workspace_argument
from .support.perform import recipe_option


@command()
@workspace_argument
@recipe_option
@click.option("--name", default="search", show_default=True, help="Name of the search.")
@struct_options(QuantizeOptions, only=("activation_bits", "exclude"))
@struct_options(SearchOptions)
@json_option
def search(
    workspace: Path,
    recipe_name: str | None,
    name: str,
    activation_bits: int | None,
    exclude: list[str] | None,
    as_json: bool,
    **changes: Any,
) -> None:
    """Find the bits of each site that lose least within a budget.

    They are written as a plan, for `quantize --plan`.

    \b
    Example: arvg-trt search out/ws --budget 'avg_bits<=5' --activation-bits 32
             arvg-trt quantize out/ws --plan out/ws/search/search/plan.json --name mixed \\
                 --activation-bits 32
    """
    from ..pipeline.search import search_stage
    from ..quantize.search.facts import SearchFacts
    from ..workspace.facts import facts
    from ..workspace.workspace import Workspace

    try:
        check_name(name)
    except ValueError as error:
        raise RecipeError(str(error), where="--name") from error
    base = load_recipe(recipe_name).quantize if recipe_name else QuantizeOptions()
    options = with_changes(base, activation_bits=activation_bits, exclude=exclude)
    wanted = with_changes(SearchOptions(), **changes)
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        result = search_stage(opened, name, options, wanted, reporter)
    if as_json:
        print_json(result)
        return
    found = facts(result.manifest, SearchFacts)
    click.echo(f"{'site':<40} {'format':>8} {'bytes':>12} {'loss':>10}")
    for row in found.sites:
        click.echo(f"{row.name:<40} {row.format:>8} {row.bytes:>12,} {row.loss:>10.2e}")
    click.echo(
        f"{found.avg_bits:.2f} bits per weight, {found.bytes:,} bytes; loss predicted "
        f"{found.predicted_loss:.3g}, measured {found.measured_loss:.3g}, quantized "
        f"{found.quantized_loss:.3g}"
    )
    if found.uniform_loss is not None:
        click.echo(f"{found.uniform_bits} bits everywhere lose {found.uniform_loss:.3g}")
    click.echo(str(result.folder / "plan.json"))
