"""Define the command that lists, shows and writes recipes, and options that adapt them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import WorkspaceError
from ..workspace.files import atomic_write
from .support import completion
from .support.console import print_json
from .support.groups import command, option
from .support.options import PathArgument, json_option

Command = TypeVar("Command", bound=Callable[..., Any])
ACTIONS = ("show", "write")
WORDS = (
    "W8A8: weights and inputs of layers in 8 bits; A16: inputs in high precision; GPTQ: weights "
    "rounded with data; best scaling: of channels, by trial, each layer's own."
)
ANY_MODEL = (
    "Each runs any model of its family: arvg-trt run PRESET --model NAME --checkpoint PATH|HUB_ID; "
    "`arvg-trt models` lists them."
)


def model_options(decorated: Command) -> Command:
    """Give a command the options that adapt a recipe to a model of its family."""
    options = (
        option(
            "--model",
            group="Model",
            shell_complete=completion.models,
            help="Another model of the recipe's family. [default: the recipe's]",
        ),
        option(
            "--checkpoint",
            group="Model",
            help="File, folder or Hugging Face id. [default: the recipe's, or shipped weights]",
        ),
        option(
            "--workspace",
            group="Model",
            help="Folder to write to. [default: the recipe's, or out/MODEL with --model]",
        ),
    )
    for decorate in reversed(options):
        decorated = decorate(decorated)
    return decorated


@command()
@click.argument("words", nargs=-1, metavar="[show|write] [NAME]", shell_complete=completion.recipes)
@model_options
@click.option("-o", "--output", type=PathArgument(), help="TOML file that `write` makes.")
@click.option("--keys", is_flag=True, help="Print every key of a recipe as Markdown tables.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a recipe, for editors.")
@json_option
def recipes(
    words: Sequence[str],
    model: str | None,
    checkpoint: str | None,
    workspace: str | None,
    output: Path | None,
    keys: bool,
    schema: bool,
    as_json: bool,
) -> None:
    """List the presets; show or write one.

    `--keys` and `--schema` say what a recipe may hold. With --model it is adapted to another model
    of its family. Without `show` or `write`, NAME is shown.

    \b
    Example: arvg-trt recipes show var-w8a8
             arvg-trt recipes write var-w8a8 -o mine.toml --model var-d16 \\
                 --checkpoint FoundationVision/var
    """
    action, name = parsed(words, write=output is not None)
    changes = {"model": model, "checkpoint": checkpoint, "workspace": workspace}
    given = [key for key, value in changes.items() if value is not None]
    if sum((name is not None, keys, schema)) > 1:
        raise click.UsageError("NAME, --keys and --schema exclude each other")
    if given and name is None:
        raise click.UsageError(f"--{given[0]} adapts a recipe: give its NAME")
    if keys or schema:
        print_reference(keys, as_json)
    elif name is None:
        print_presets(as_json)
    elif action == "write" and output is not None:
        write_recipe(name, changes, output, as_json)
    else:
        from ..explain.recipes import recipe_text

        text = recipe_text(name, **changes)
        print_json({"recipe": text}) if as_json else click.echo(text, nl=False)


def parsed(words: Sequence[str], write: bool) -> tuple[str, str | None]:
    """Return the action and the name that the arguments give; NAME alone is shown."""
    action, rest = (words[0], words[1:]) if words and words[0] in ACTIONS else ("show", words)
    if len(rest) > 1:
        raise click.UsageError(f"one NAME is taken, not {' '.join(rest)}")
    if words and words[0] in ACTIONS and not rest:
        raise click.UsageError(f"{action} takes the NAME of a recipe")
    if write and action != "write":
        raise click.UsageError("-o FILE is for `recipes write NAME`")
    if action == "write" and not write:
        raise click.UsageError(f"where to? `recipes write {rest[0]} -o FILE` names the file")
    return action, rest[0] if rest else None


def print_reference(keys: bool, as_json: bool) -> None:
    """Print what a recipe may hold, as tables or as a JSON schema."""
    from ..recipe.reference import json_schema, key_rows, markdown

    if keys and as_json:
        print_json({"keys": key_rows()})
    else:
        click.echo(markdown() if keys else json.dumps(json_schema(), indent=2))


def print_presets(as_json: bool) -> None:
    """Print a line for each preset."""
    from ..explain.recipes import preset_rows

    rows = preset_rows()
    if as_json:
        print_json({"recipes": rows})
        return
    width = max(len(row.model) for row in rows)
    click.echo(f"{'preset':<17}  {'model':<{width}}  {'weights':<9}  what it does")
    for row in rows:
        weights = "to fetch" if row.weights == "published" else row.weights
        head = f"{row.name:<17}  {row.model:<{width}}  {weights:<9}"
        click.echo(f"{head}  {row.description}; {row.backends}")
    click.echo(f"\n{WORDS}\n{ANY_MODEL}")
    missing = {row.checkpoint for row in rows if row.weights == "missing"}
    for text in sorted(missing):
        click.echo(f"missing: {text}")


def write_recipe(name: str, changes: dict[str, Any], output: Path, as_json: bool) -> None:
    """Write a recipe to a new file."""
    from ..explain.recipes import recipe_text

    text = recipe_text(name, **changes)
    if output.exists():
        raise WorkspaceError("is there already", where=str(output), do="name a new file")
    atomic_write(output, text.encode())
    print_json({"written": output}) if as_json else click.echo(str(output))
