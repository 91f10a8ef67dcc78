"""Complete what a shell is asked for: models, presets, targets and the sites of a workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ...engines.tensorrt.targets import target_names
from ...errors import ArvgError
from ...graph.sites import load_sites
from ...recipe.file import preset_names

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def models(ctx: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Complete the names that `export` takes, also those of families without a size."""
    from ...families.variants import all_families
    from ...runtime.families import built_in_families

    try:
        families = all_families()
    except ArvgError:  # a broken plug-in is reported by the command itself, not while one types
        families = built_in_families()
    return starting(start, (model.name for family in families for model in family.models))


def recipes(ctx: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Complete the names of presets; where none begins like that, files."""
    return starting(start, preset_names()) or [CompletionItem(start, type="file")]


def targets(ctx: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Complete the names of GPUs and compute capabilities."""
    return starting(start, target_names())


def sites(ctx: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Complete the names of the sites of the workspace that stands before; none without one."""
    # Click leaves arguments unparsed where an option has no value yet, as while one types it.
    places = [ctx.params.get("workspace"), *ctx.args]
    workspace = next((place for place in places if place is not None), None)
    if workspace is None:
        return []
    try:
        found = load_sites(Path(workspace) / "export")
    except (ArvgError, OSError):  # nothing is exported there yet
        return []
    return starting(start, (site.name for site in found.sites))


def starting(start: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(start)]


# Of options that are made from the fields of structs, by the field's name.
BY_FIELD: dict[str, Completer] = {
    "targets": targets,
    **dict.fromkeys(("per_tensor", "exclude", "include"), sites),
}
