"""Define the commands that keep a report as the baseline of later ones."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import AccuracyError
from .support.console import print_json
from .support.groups import GroupedCommand
from .support.options import PathArgument, json_option

name_option = click.option(
    "--name", help="Quantization in a workspace. [default: the only one that has a report]"
)
failed_option = click.option(
    "--accept-failed-gates", is_flag=True, help="Take a report whose gates failed."
)


@click.group()
def baseline() -> None:
    """Keep a report as the baseline of later ones.

    \b
    arvg-trt baseline save out/demo -o baselines/cosmos-mini-int8.json
    arvg-trt baseline update baselines/cosmos-mini-int8.json out/demo
    """


@baseline.command(cls=GroupedCommand)
@click.argument("report", metavar="REPORT|WORKSPACE", type=PathArgument())
@click.option("-o", "--output", type=PathArgument(), required=True, help="A new JSON file.")
@name_option
@click.option(
    "--with-latency",
    is_flag=True,
    help="Keep latencies too, for a machine of your own whose speed is steady.",
)
@failed_option
@json_option
def save(
    report: Path,
    output: Path,
    name: str | None,
    with_latency: bool,
    accept_failed_gates: bool,
    as_json: bool,
) -> None:
    """Write a report as a new baseline.

    What varies by machine and by run is left out.

    \b
    Example: arvg-trt baseline save out/demo -o baselines/cosmos-mini-int8.json
    """
    from ..ci.baseline import find_report, save_baseline

    source = find_report(report, name)
    kept = save_baseline(
        source, output, with_latency=with_latency, accept_failed_gates=accept_failed_gates
    )
    if as_json:
        print_json({"written": output, "model": kept.model, "name": kept.name})
        return
    click.echo(f"{output}: {kept.model}, {kept.name}")


@baseline.command(cls=GroupedCommand)
@click.argument("file", type=PathArgument())
@click.argument("report", metavar="REPORT|WORKSPACE", type=PathArgument())
@name_option
@click.option("--accept-regression", is_flag=True, help="Replace it though a metric is worse.")
@failed_option
@json_option
def update(
    file: Path,
    report: Path,
    name: str | None,
    accept_regression: bool,
    accept_failed_gates: bool,
    as_json: bool,
) -> None:
    """Replace the baseline FILE by a better report.

    A worse one leaves it, and exits with 8. A report that is the same within the tolerances leaves
    it too, or one that may be worse by chance, so that small losses do not add up. Another model,
    quantization or other samples are refused.

    \b
    Example: arvg-trt baseline update baselines/cosmos-mini-int8.json out/demo
    """
    from ..ci.baseline import find_report, update_baseline
    from ..validate.compare.compare_json import ComparedReports
    from ..validate.compare.page import comparison_markdown

    done = update_baseline(
        file,
        find_report(report, name),
        accept_regression=accept_regression,
        accept_failed_gates=accept_failed_gates,
    )
    worse = done.found.regressed and done.state == "kept"
    fields = {"state": done.state, "comparison": ComparedReports.of(done.found)}
    if not as_json:
        click.echo(comparison_markdown(done.found))
    if worse:
        error = AccuracyError(
            "the report is worse, and the baseline stays",
            where=str(file),
            do="mend it, or give --accept-regression",
        )
        error.measured = fields
        raise error
    if as_json:
        print_json(fields)
    if not as_json:
        same = (
            "stays as it is: a metric may be worse; --accept-regression replaces it all the same"
            if done.open
            else "stays as it is: no metric is better beyond its tolerance"
        )
        click.echo(f"{file}: {'replaced' if done.state == 'replaced' else same}")
