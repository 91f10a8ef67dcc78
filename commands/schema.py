"""Define the command that prints the JSON schema of a file."""

from __future__ import annotations

import json

import click

from .support.groups import command


@command()
@click.argument("name", type=click.Choice(["report", "plan", "sites", "manifest", "recipe"]))
def schema(name: str) -> None:
    """Print the JSON schema of a file that arvg-trt writes or reads.

    \b
    Example: arvg-trt schema report > report.schema.json
    """
    from ..validate.schemas import published_schema

    click.echo(json.dumps(published_schema(name), indent=2))
