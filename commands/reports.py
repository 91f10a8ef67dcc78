"""Define the commands about reports: compare them, list them, print what a file may hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ..errors import AccuracyError, InconclusiveError
from ..workspace.files import atomic_write
from .support.console import print_json
from .support.groups import command
from .support.options import PathArgument, json_option

if TYPE_CHECKING:
    from ..validate.compare.compare_json import ComparedReports


@command()
@click.argument("reports", nargs=-1, required=True, type=PathArgument())
@click.option("--baseline", type=PathArgument(), help="The baseline, in place of the first REPORT.")
@click.option(
    "--max-regression",
    metavar="METRIC:AMOUNT,…",
    help="Largest losses, as 'psnr:0.1dB,kl:10%'; they alone decide.",
)
@click.option(
    "--tolerances", type=PathArgument(), help="TOML file of what counts as the same, by metric."
)
@click.option("--html", type=PathArgument(), help="Also write an HTML page.")
@click.option(
    "--summary",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help="Also write a short Markdown comment for a pull request; with - print it alone.",
)
@click.option("--allow-different", is_flag=True, help="Compare other models or images too.")
@json_option
def compare(
    reports: Sequence[Path],
    baseline: Path | None,
    max_regression: str | None,
    tolerances: Path | None,
    html: Path | None,
    summary: Path | None,
    allow_different: bool,
    as_json: bool,
) -> None:
    """Compare reports with the first of them, the baseline.

    A regression exits with 8. A metric is worse if all of the interval of its change is beyond its
    tolerance. What that interval leaves open is inconclusive, and exits with 13 if --max-regression
    names it.

    \b
    Example: arvg-trt compare main/report.json new/report.json
             arvg-trt compare baselines/int8.json out/demo/validate/int8 --summary comment.md
             arvg-trt compare --baseline main/report.json new/report.json \\
                 --max-regression 'psnr:0.1dB,ssim:1%'
    """
    from ..validate.compare.compare_json import ComparedReports
    from ..validate.compare.files import compare_reports
    from ..validate.compare.page import comparison_markdown

    printed = summary is not None and str(summary) == "-"
    if printed and as_json:
        raise click.UsageError("--summary - and --json both print: name a file of the summary")

    def summarize(text: str) -> None:
        if printed:
            click.echo(text, nl=False)
        elif summary is not None:
            atomic_write(summary, text.encode())

    found = compare_reports(
        reports if baseline is None else [baseline, *reports],
        html,
        allow_different,
        None if summary is None else summarize,
        tolerances,
        max_regression,
    )
    compared = ComparedReports.of(found)
    if not as_json and not printed:
        click.echo(comparison_markdown(found))
    if (error := comparison_error(compared)) is not None:
        error.measured = msgspec.structs.asdict(compared)
        raise error
    if as_json:
        print_json(compared)


def comparison_error(compared: ComparedReports) -> AccuracyError | InconclusiveError | None:
    """Return the error of a comparison that found a regression, or left a limit open."""
    base = f"than {compared.labels[0]}, beyond the tolerance"
    worse = [
        row.metric
        for row in compared.rows
        if row.decides and any(cell.verdict == "worse" for cell in row.cells)
    ]
    if compared.regressed:
        return AccuracyError(f"worse {base}: {', '.join(worse)}")
    if compared.undecided:
        more = "validate on more samples, or allow a larger loss"
        return InconclusiveError(f"not decided: {', '.join(compared.undecided)}", do=more)
    return None


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

    A row per report: what was quantized, the verdict of its gates, accuracy, size and speed, and a
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


@command()
@click.argument("name", type=click.Choice(["report", "plan", "sites", "manifest", "recipe"]))
@json_option
def schema(name: str, as_json: bool) -> None:
    """Print the JSON schema of a file that arvg-trt writes.

    With --json it is one line.

    \b
    Example: arvg-trt schema report > report.schema.json
    """
    from ..validate.schemas import published_schema

    click.echo(json.dumps(published_schema(name), indent=None if as_json else 2))
