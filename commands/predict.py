"""Define the commands about speed before there is an engine: `predict` and `probe`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .support import completion
from .support.console import ConsoleReporter, print_json
from .support.groups import command
from .support.options import PathArgument, json_option, workspace_argument

if TYPE_CHECKING:
    from ..engines.roofline.machine import ProductFormat
    from ..engines.roofline.predict import PhaseRow, Prediction


@command()
@workspace_argument
@click.option(
    "--target",
    required=True,
    shell_complete=completion.targets,
    help="A GPU such as rtx4090, or a file that `probe` wrote.",
)
@click.option("--batch-size", default=1, type=click.IntRange(1), show_default=True, help="Images.")
@click.option(
    "--image-size",
    type=click.IntRange(1),
    help="Side of the images of a tokenizer. [default: its only one, or 256]",
)
@json_option
def predict(
    workspace: Path, target: str, batch_size: int, image_size: int | None, as_json: bool
) -> None:
    """Predict which number format is fastest on a target.

    The times are a roofline's: a product takes as long as its bytes or its operations, whichever is
    longer. That is a lower bound, and what runs between products is not in it. `quantize
    --plan-for` plans by the same figures.

    \b
    Example: arvg-trt predict out/var-mini --target rtx4090
             arvg-trt predict out/ws --target cpu.json
    """
    from ..engines.roofline.machine import find_machine
    from ..engines.roofline.model import predict_model
    from ..workspace.workspace import Workspace

    machine = find_machine(target)
    found = predict_model(Workspace(workspace), machine, batch_size, image_size)
    if as_json:
        totals = {form: found.total(form) for form in machine.peaks}
        print_json(
            {"machine": machine, "images": batch_size, "seconds": totals, "phases": found.phases}
        )
        return
    for line in prediction_lines(found):
        click.echo(line)


def prediction_lines(found: Prediction) -> list[str]:
    """Return a table of phases, those of equal rows together, and the sums below it."""
    forms: list[ProductFormat] = list(found.machine.peaks)
    head = ["graph", "runs", "rows", *(f"{form}, ms" for form in forms), "fastest", "bound by"]
    table = [head]
    for (graph, _), group in groupby(found.phases, key=lambda row: (row.graph, row.rows)):
        table.append(_cells(graph, list(group), forms))
    sums = [f"{1e3 * found.total(form):#.3g}" for form in forms]
    table.append(["all", "", "", *sums, min(forms, key=found.total), ""])
    widths = [max(len(row[k]) for row in table) for k in range(len(head))]
    images = "1 image" if found.images == 1 else f"{found.images} images"
    title = f"{found.machine.name}, {images} per batch: a lower bound, of products alone"
    lines = ["  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)) for row in table]
    return [title, *(line.rstrip() for line in lines)]


def _cells(graph: str, rows: Sequence[PhaseRow], forms: Sequence[ProductFormat]) -> list[str]:
    seconds = {form: sum(row.seconds[form] for row in rows) for form in forms}
    fastest = min(forms, key=lambda form: seconds[form])
    least, most = rows[0].rows
    last = max(rows, key=lambda row: row.seconds[row.form])
    bytes_first = last.bandwidth_bound >= 0.5
    bound = f"bytes, {last.weights:.0%} weights" if bytes_first else "operations"
    return [
        graph,
        str(sum(row.runs for row in rows)),
        f"{least:,}" if least == most else f"{least:,} to {most:,}",
        *(f"{1e3 * seconds[form]:#.3g}" for form in forms),
        fastest,
        bound,
    ]


@command()
@click.option(
    "-o", "--output", required=True, type=PathArgument(), help="The JSON file for --plan-for."
)
@click.option(
    "--seconds", default=20.0, type=click.FloatRange(1, 600), show_default=True, help="How long."
)
@json_option
def probe(output: Path, seconds: float, as_json: bool) -> None:
    """Measure this machine's processor for `predict`.

    `quantize --plan-for` takes the file too. The command runs linear layers with ONNX Runtime: one
    row of a large weight for the bandwidth, many rows for the operations a second in FP32 and W8A8.
    Leave the machine alone meanwhile.

    \b
    Example: arvg-trt probe -o cpu.json
    """
    from ..engines.roofline.probe import probe as measure
    from ..workspace.files import atomic_write, encode_json

    with ConsoleReporter(quiet=as_json) as reporter:
        machine = measure(reporter.progress, seconds)
    atomic_write(output, encode_json(machine))
    if as_json:
        print_json({"machine": machine, "file": str(output)})
        return
    peaks = ", ".join(f"{form} {peak / 1e9:,.0f} Gop/s" for form, peak in machine.peaks.items())
    click.echo(f"{machine.name}: {machine.bandwidth / 1e9:.1f} GB/s, {peaks}: {output}")
