"""Measure time and memory of FID's statistics, streamed and as the ADM evaluator takes them.

python -m arvg_trt.benchmarks.evaluate.fid_statistics

50,000 x 2,048 float32 features, correlated and not negative, come in batches of 500; their distance
is to the statistics of 10,000 others. Each way has a process of its own: `streamed` keeps sums,
`evaluator` all features for numpy.cov, and takes scipy's root of the product of the covariances.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

BATCH = 500


def features(count: int, width: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield batches of rectified mixtures of normal values, as a network's pooled features are."""
    mixing = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32) / 8
    rng = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        rows = min(BATCH, count - start)
        shared = rng.standard_normal((rows, 64), np.float32) @ mixing
        own = rng.standard_normal((rows, width), np.float32)
        yield np.maximum(shared + np.float32(0.5) * own, 0)


class Clock:
    """Add up wall and processor seconds of the parts of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, part: str, work: Any, *arguments: Any) -> Any:
        start = time.perf_counter(), time.process_time()
        found = work(*arguments)
        spent = self.seconds.setdefault(part, [0.0, 0.0])
        spent[0] += time.perf_counter() - start[0]
        spent[1] += time.process_time() - start[1]
        return found


def streamed(count: int, other: int, width: int, clock: Clock) -> float:
    from ...validate.metrics.frechet import gaussian_distance
    from ...validate.metrics.moments import Moments

    made = []
    for part, number, seed in (("reference", other, 2), ("statistics", count, 1)):
        moments = Moments()
        for batch in features(number, width, seed):
            clock(part, moments.add, batch)
        made.append(clock(part, moments.result))
    return float(clock("distance", gaussian_distance, *made))


def evaluator(count: int, other: int, width: int, clock: Clock) -> float:
    from scipy.linalg import sqrtm

    means, covariances = [], []
    for part, number, seed in (("reference", other, 2), ("statistics", count, 1)):
        every = np.concatenate(list(features(number, width, seed)))
        means.append(clock(part, np.mean, every, 0, np.float64))
        covariances.append(clock(part, lambda rows: np.cov(rows, rowvar=False), every))
    gap = means[0] - means[1]
    root = clock("distance", lambda: sqrtm(covariances[0] @ covariances[1]))
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(gap @ gap + traces - 2 * np.trace(np.real(root)))


WAYS = {"streamed": streamed, "evaluator": evaluator}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", default=50_000, show_default=True)
@click.option("--reference", default=10_000, show_default=True)
@click.option("--width", default=2048, show_default=True)
@click.option("--way", type=click.Choice(list(WAYS)), hidden=True)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of results, or a file.")
def main(count: int, reference: int, width: int, way: str | None, output: Path | None) -> None:
    """Measure both ways, each in a process of its own."""
    if way is not None:
        assert output is not None
        clock = Clock()
        distance = WAYS[way](count, reference, width, clock)
        output.write_text(json.dumps({"distance": distance, "seconds": clock.seconds}))
        return
    from ..common import (
        RESULTS,
        environment,
        environment_line,
        markdown_table,
        run_measured,
        source_commit,
        write_results,
    )

    rows: dict[str, dict[str, Any]] = {}
    sizes = ["--count", str(count), "--reference", str(reference), "--width", str(width)]
    for name in WAYS:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "found.json"
            module = "arvg_trt.benchmarks.evaluate.fid_statistics"
            arguments = [module, *sizes, "--way", name, "--output", str(target)]
            measured = run_measured(arguments, Path(scratch))
            rows[name] = json.loads(target.read_text()) | {"peak_mb": measured.peak_mb}
    lines = [
        (
            name,
            *(f"{row['seconds'][p][0]:.1f} ({row['seconds'][p][1]:.1f})" for p in PARTS),
            f"{row['peak_mb']:.0f}",
            f"{row['distance']:.6f}",
        )
        for name, row in rows.items()
    ]
    header = ("way", *(f"{p}, s" for p in PARTS), "peak, MB", "distance")
    text = f"""\
# Statistics of FID

{count:,} x {width:,} float32 features against {reference:,}; wall seconds, in brackets those of the
processors, on a machine that others used at the time. `statistics` and `reference` are mean and
covariance, `distance` the Frechet distance of both. `streamed` is this package's way, `evaluator`
that of the ADM evaluator: numpy.cov of all features, scipy.linalg.sqrtm. Peak memory is of the
whole process. Written by `python -m arvg_trt.benchmarks.evaluate.fid_statistics`, commit
{source_commit()}.

{markdown_table(header, lines)}

{environment_line(environment(0))}
"""
    values = {"count": count, "width": width, "rows": rows, "environment": environment(0)}
    write_results("fid_statistics", output or RESULTS, text, values)
    click.echo(text)


PARTS = ("statistics", "reference", "distance")

if __name__ == "__main__":
    main()
