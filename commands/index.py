"""Define the command that lists reports and bundles on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from .support.console import print_json
from .support.groups import command
from .support.options import PathArgument, json_option


@command()
@click.argument("folders", nargs=-1, required=True, type=PathArgument())
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    metavar="FILE",
    help="The page. [default: index.html in the first folder; none with --json]",
)
@json_option
def index(folders: Sequence[Path], output: Path | None, as_json: bool) -> None:
    """Write one page with every report and bundle below FOLDERS.

    A row a report: what was quantized, the verdict of its gates, accuracy, size and speed, and a
    link to it. A file that cannot be read has a row that says why.

    \b
    Example: arvg-trt index out -o out/index.html
    """
    from ..validate.index import make_index
    from ..validate.index_page import index_page
    from ..validate.report.page import to_html
    from ..workspace.files import atomic_write

    first = folders[0] if folders[0].is_dir() else folders[0].parent
    page = output or first / "index.html"
    found = make_index(folders, page.parent)
    if output is not None or not as_json:
        atomic_write(page, to_html(index_page(found)).encode())
    if as_json:
        print_json(found)
        return
    failed = sum(report.verdict == "failed" for report in found.reports)
    click.echo(f"reports: {len(found.reports)}, failed: {failed}, bundles: {len(found.bundles)}")
    click.echo(page)
