"""Measure images a second of `evaluate` by its workers, beside a plain loop in one process.

python -m arvg_trt.benchmarks.evaluate.cost

var-mini makes the images, on one thread a worker. Processor seconds an image, of workers and driver
together, tell the overhead apart from what other programs take of the machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ...api import Workspace
from ..common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    source_commit,
    write_results,
)

MODEL = "var-mini"
LOOP = """
import io, sys
from PIL import Image
from arvg_trt.runtime.generator import Generator, choose_sampling
made = Generator.open(sys.argv[1], threads=1)
count, classes = int(sys.argv[2]), made.spec.num_classes
labels = [k % classes for k in range(count)]
for batch in made.batches(labels, seed=0, sampling=choose_sampling(made.spec), batch_size=4):
    for image in batch.images:
        Image.fromarray(image).save(io.BytesIO(), "PNG")
"""


def spent(run: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor seconds of child processes."""

    def processors() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start = time.perf_counter(), processors()
    run()
    return time.perf_counter() - start[0], processors() - start[1]


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", default=2000, show_default=True)
@click.option("--workers", default=(1, 2, 4), multiple=True, show_default=True, type=int)
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
def main(count: int, workers: Sequence[int], output: Path) -> None:
    """Make the same images by a plain loop and by `evaluate` with several numbers of workers."""
    found: dict[str, tuple[float, float]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "ws"
        Workspace(workspace).export(MODEL)
        found["plain loop, one process"] = spent(lambda: command("-c", LOOP, workspace, count))
        for number in workers:

            def evaluate(number: int = number) -> None:
                folder = Path(scratch) / f"workers{number}"
                sizes = ("--count", count, "--shard-size", 100, "--threads", 1)
                arguments = ("-o", folder, *sizes, "--workers", number)
                command("-m", "arvg_trt", "evaluate", workspace, *arguments)

            found[f"evaluate, {number} workers"] = spent(evaluate)
    plain = next(iter(found.values()))
    lines = [
        (
            name,
            f"{wall:.1f}",
            f"{count / wall:.1f}",
            f"{plain[0] / wall:.2f}x",
            f"{1000 * cpu / count:.2f}",
            f"{cpu / plain[1] - 1:+.1%}",
        )
        for name, (wall, cpu) in found.items()
    ]
    header = ("way", "wall, s", "images/s", "speed", "processor ms an image", "overhead")
    text = f"""\
# Cost of `evaluate`

{count:,} images of {MODEL}, batches of 4, shards of 100, PNGs in tars, no feature network; from
start to end of the program. Load average before: {load:.1f}. The overhead is of processor seconds,
which other work does not change; the driver and the opening of sessions are in it.
Written by `python -m arvg_trt.benchmarks.evaluate.cost`, commit {source_commit()}.

{markdown_table(header, lines)}

{environment_line(environment(1))}
"""
    values = {
        "count": count,
        "rows": {n: {"wall_s": w, "processor_s": c} for n, (w, c) in found.items()},
        "environment": environment(1),
    }
    write_results("evaluate_cost", output, text, values)
    click.echo(text)


if __name__ == "__main__":
    main()
