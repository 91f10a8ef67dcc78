"""Define the command that builds engines, from a workspace or from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..recipe.build import BuildOptions
from .support.console import ConsoleReporter
from .support.groups import command, option
from .support.options import (
    PathArgument,
    json_option,
    require_key_option,
    struct_options,
)
from .support.perform import (
    name_option,
    perform,
    print_results,
    quantization_name,
    recipe_option,
    recipe_or_none,
    selected_builds,
)


@command()
@click.argument("workspace", type=PathArgument(), required=False)
@recipe_option
@name_option
@struct_options(BuildOptions)
@option(
    "--from",
    "packed",
    group="Bundle",
    type=PathArgument(),
    help="Bundle whose kit is built, into WORKSPACE, a new folder; without it for this machine's "
    "GPU, into the cache.",
)
@require_key_option
@json_option
def build(
    workspace: Path | None,
    recipe_name: str | None,
    name: str | None,
    packed: Path | None,
    keys: Sequence[Path],
    as_json: bool,
    **changes: Any,
) -> None:
    """Build engines from WORKSPACE, or from a bundle.

    ONNX Runtime's engine runs on the CPU and needs no --target; `--backend tensorrt_rtx` compiles
    for the GPUs that --target names, on any machine.

    \b
    Example: arvg-trt build out/ws --backend tensorrt_rtx --target rtx3090 --target rtx4090
             arvg-trt build --from demo.tar --backend tensorrt
    """
    from ..pipeline.build import build_stage

    recipe = recipe_or_none(recipe_name)
    if packed is not None:
        if recipe is not None or name is not None:
            raise click.UsageError("--from takes no --recipe and no --name: the bundle has them")
        build_kit_of(packed, keys, workspace, changes, as_json)
        return
    if workspace is None:
        raise click.UsageError("Missing argument 'WORKSPACE', or --from FILE")
    if keys:
        raise click.UsageError("--require-key is for bundles: give --from FILE")
    called = quantization_name(name, recipe)
    builds = selected_builds(recipe, changes)
    perform(
        workspace,
        as_json,
        lambda w, r: [
            result for options in builds for result in build_stage(w, called, options, r)
        ],
    )


def build_kit_of(
    packed: Path,
    keys: Sequence[Path],
    workspace: Path | None,
    changes: dict[str, Any],
    as_json: bool,
) -> None:
    """Build the kit of a bundle; only the back end and its targets can be chosen."""
    from ..pipeline.ship import build_bundled

    fixed = {k: v for k, v in changes.items() if v is not None and k not in FREE_OF_A_KIT}
    if fixed:
        raise click.UsageError(f"--from takes no --{next(iter(fixed)).replace('_', '-')}")
    targets, unproved = changes["targets"] or (), bool(changes["allow_unproved"])
    with ConsoleReporter(quiet=as_json) as reporter:
        made = build_bundled(
            packed, keys, workspace, changes["backend"], targets, unproved, reporter
        )
    print_results(made, as_json)


FREE_OF_A_KIT = ("backend", "targets", "allow_unproved")
