"""Commands that say what there is: models, reports, artifacts, the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..errors import AccuracyError
from .console import print_json
from .support import Place, json_option


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that are known by name.

    \b
    Example: arvg-trt models
    """
    from ..pipeline.info import model_rows

    rows = model_rows()
    if as_json:
        print_json({"models": rows})
        return
    for row in rows:
        files = " ".join(row["files"][0])
        click.echo(f"{row['name']:<18} {row['parameters']:>13,}  {row['checkpoint']}: {files}")


@click.command()
@click.argument("reports", nargs=-1, required=True, type=Place())
@click.option("--html", type=Place(), help="Also write an HTML page.")
@click.option("--allow-different", is_flag=True, help="Compare other models or images too.")
@json_option
def compare(
    reports: Sequence[Path], html: Path | None, allow_different: bool, as_json: bool
) -> None:
    """Compare two or more reports; the first is the baseline, a regression exits with 8.

    \b
    Example: arvg-trt compare main/report.json new/report.json
    """
    from ..pipeline.info import compare_reports

    text, result, regressed = compare_reports(reports, html, allow_different)
    if as_json:
        print_json(result)
    else:
        click.echo(text)
    if regressed:
        sys.exit(AccuracyError.exit_code)


@click.command()
@click.argument("path", type=Place())
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Say what a workspace, stage folder, graph, or engine is.

    \b
    Example: arvg-trt inspect out/demo
    """
    from ..pipeline.info import inspect_path

    rows = inspect_path(path)
    if as_json:
        print_json(rows)
        return
    for key, value in rows.items():
        click.echo(f"{key}: {value}")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run, and what to install.

    \b
    Example: arvg-trt doctor
    """
    from ..pipeline.info import doctor_rows

    rows = doctor_rows()
    if as_json:
        print_json({"checks": rows})
        return
    for row in rows:
        click.echo(f"{row['state']:<8} {row['what']:<22} {row['detail']}")
