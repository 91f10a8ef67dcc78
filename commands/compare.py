"""Define the command that compares reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..errors import AccuracyError, InconclusiveError
from ..workspace.files import atomic_write
from .support.console import print_json
from .support.groups import command
from .support.options import PathArgument, json_option


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
    """Compare two or more reports; the first is the baseline, a regression exits with 8.

    A metric is worse if all of the interval of its change is beyond its tolerance. What that
    interval leaves open is inconclusive, and exits with 13 if --max-regression names it.

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
    if as_json:
        print_json(ComparedReports.of(found))
    elif not printed:
        click.echo(comparison_markdown(found))
    if found.regressed:
        sys.exit(AccuracyError.exit_code)
    if found.undecided:
        sys.exit(InconclusiveError.exit_code)
