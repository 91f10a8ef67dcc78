"""Compare predicted times with published ones of a GPU and with measured ones of this processor.

python -m arvg_trt.benchmarks.roofline --workdir /scratch
python -m arvg_trt.benchmarks.roofline --workdir /scratch --model var-d16

GPU: graphs of published sizes, exported from random weights, at the batch that PTQ4ARVG timed on an
RTX 3090. CPU: a probe of this machine, then linear layers of other sizes, FP32 and W8A8 in turns.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ..engines.roofline.machine import Machine, ProductFormat, find_machine
from ..engines.roofline.model import predict_model
from ..engines.roofline.predict import product_cost
from ..engines.roofline.probe import linear_run, probe
from ..engines.roofline.products import Product
from ..families.variants import find_model
from ..pipeline.export import export_any
from ..workspace.workspace import Workspace
from .common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    markdown_table,
    write_results,
)
from .random_checkpoint import checkpoint_of

# PTQ4ARVG, arXiv:2601.21238, section 5: speedup at W8A8 on an RTX 3090, batch 100, 256 tokens.
PUBLISHED = {"var-d16": 2.92, "var-d20": 3.01, "rar-l": 2.87, "rar-xl": 2.99}
TARGET, IMAGES = "rtx3090", 100
LINEARS = (
    *((2, 1024, 3072), (2, 4096, 1024), (32, 1024, 4096)),
    *((72, 1024, 4096), (288, 1024, 3072), (512, 4096, 1024)),
)
ROUNDS = 15
MEASURED: tuple[ProductFormat, ...] = ("fp32", "w8a8")


@click.command()
@click.option("--model", "models", multiple=True, default=("var-d16", "rar-l"), show_default=True)
@click.option("--workdir", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path), show_default=True)
def main(models: Sequence[str], workdir: Path, results: Path) -> None:
    """Write roofline.md and roofline.json."""
    machine = probe(lambda *_: None)
    cpu = [linear_row(machine, *size) for size in LINEARS]
    gpu = [gpu_row(name, workdir) for name in models]
    found = environment(threads=0)
    text = "\n\n".join(
        [
            "# Predicted and real times",
            f"{environment_line(found)}.",
            gpu_text(gpu),
            cpu_text(machine, cpu),
        ]
    )
    values = {"environment": found, "machine": msgspec.to_builtins(machine), "gpu": gpu, "cpu": cpu}
    write_results("roofline", results, f"{text}\n", values)
    click.echo(text)


def gpu_row(model: str, workdir: Path) -> dict[str, Any]:
    """Return what a roofline predicts for a published size, beside the published speedup."""
    checkpoint = checkpoint_of(find_model(model), workdir / f"{model}-weights")
    folder = workdir / f"{model}-ws"
    with Workspace(folder) as workspace:
        export_any(workspace, model, str(checkpoint), "skimage:astronaut", (), QuietReporter())
        found = predict_model(workspace, find_machine(TARGET), IMAGES)
    shutil.rmtree(folder)
    seconds = {form: found.total(form) for form in found.machine.peaks}
    return {"model": model, "seconds": seconds, "published": PUBLISHED.get(model)}


def gpu_text(rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        seconds, published = row["seconds"], row["published"]
        predicted = seconds["fp16"] / seconds["w8a8"]
        off = f"{predicted / published:.2f}" if published else "-"
        times = [f"{seconds[form]:.3f}" for form in ("fp32", "fp16", "w8a8")]
        cells.append([row["model"], *times, f"{predicted:.2f}", published or "-", off])
    header = ["model", "FP32, s", "FP16, s", "W8A8, s", "FP16 / W8A8", "published", "ratio"]
    return (
        f"RTX 3090, {IMAGES} images per batch with guidance, the picture's decoder included. "
        "Predicted, not measured; the published figures are the paper's, whose baseline it does "
        "not describe.\n\n"
        f"{markdown_table(header, cells)}"
    )


def linear_row(machine: Machine, rows: int, depth: int, width: int) -> dict[str, Any]:
    """Return predicted and measured seconds of a linear layer in FP32 and W8A8."""
    runs = {form: linear_run(form, rows, depth, width) for form in MEASURED}
    taken: dict[ProductFormat, list[float]] = {form: [] for form in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for form, run in runs.items():
            start = time.perf_counter()
            run()
            taken[form].append(time.perf_counter() - start)
    product = Product(
        "p", "w", rows, rows * depth * width, depth * width, rows * depth, rows * width
    )
    return {
        "size": [rows, depth, width],
        "measured": {form: statistics.median(each) for form, each in taken.items()},
        "predicted": {form: product_cost(product, form, machine).seconds for form in runs},
    }


def cpu_text(machine: Machine, rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        measured, predicted = row["measured"], row["predicted"]
        cells.append(
            [
                " x ".join(f"{n:,}" for n in row["size"]),
                *(f"{1e3 * measured[f]:.2f} / {1e3 * predicted[f]:.2f}" for f in measured),
                f"{measured['fp32'] / measured['w8a8']:.2f}",
                f"{predicted['fp32'] / predicted['w8a8']:.2f}",
            ]
        )
    header = [
        *("rows x inputs x outputs", "FP32, ms, measured / predicted"),
        *("W8A8, ms, measured / predicted", "speedup, measured", "predicted"),
    ]
    peaks = ", ".join(f"{form} {peak / 1e9:,.0f} G/s" for form, peak in machine.peaks.items())
    return (
        f"This processor by `arvg-trt probe`: {machine.bandwidth / 1e9:.1f} GB/s, {peaks}. Weights "
        "that a cache holds are faster than memory's bytes.\n\n"
        f"{markdown_table(header, cells)}"
    )


if __name__ == "__main__":
    main()
