"""Measure what calibration costs beside inference, and beside ONNX Runtime's calibrator.

python -m arvg_trt.benchmarks.calibration [--samples 128]

The model is the VAR of real width with planted outliers (`planted.py`), four layers; its samples
are rows of the full graph with codes of N(0, 1). Every variant runs in a process of its own, in
turn, round by round. Seconds are those from opened files to results, without imports, medians over
rounds, and ratios medians of each round's; peak memory is that of the process. Plain inference is
that of the same graph on the same samples, one at a time, in the same kind of session. The peer is
fed the same samples and keeps all activations until its histograms are made.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np

from ...api import Workspace
from ...samples.files import Array, save_sample
from ..common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    run_measured,
    source_commit,
    write_results,
)
from ..planted import CONFIG, write_planted
from .variants import PEER, VARIANTS

MODULE = "arvg_trt.benchmarks.calibration.variants"
FEW, MANY = 32, 256
HELD_OUT = 8
IMAGES = "skimage:coffee"


@dataclass(frozen=True, slots=True)
class Cost:
    """Hold a variant's cost on `samples`: seconds of each round, largest peak in 10^6 bytes."""

    variant: str
    samples: int
    rounds: tuple[float, ...]
    peak_mb: float

    @property
    def seconds(self) -> float:
        return statistics.median(self.rounds)

    def times(self, other: Cost) -> float:
        """Return the ratio of seconds; that of each round's, where both have as many rounds."""
        if len(self.rounds) != len(other.rounds):
            return self.seconds / other.seconds
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(own / plain for own, plain in pairs)


def prepare(folder: Path, samples: int, width: int, depth: int) -> None:
    """Export the model to `folder`, beside rows to calibrate on and to measure on."""
    config = replace(CONFIG, width=width, depth=depth, heads=width // 64)
    write_planted(folder / "checkpoint", config)
    Workspace(folder).export("var", folder / "checkpoint", images=IMAGES)
    rng = np.random.default_rng(0)
    for name, count in (("samples", samples), ("held_out", HELD_OUT)):
        (folder / name).mkdir()
        for k in range(count):
            shape = (1, config.length - config.first_length, config.latent_channels)
            label = rng.integers(0, config.num_classes, 1) if k % 2 == 0 else [config.num_classes]
            row: dict[str, Array] = {
                "labels": np.array(label, np.int64),
                "features": rng.normal(0, 1, shape).astype(np.float32),
            }
            save_sample(row, folder / name, k)


def measure(
    folder: Path, runs: Sequence[tuple[str, int]], rounds: int
) -> tuple[list[Cost], dict[str, float]]:
    """Measure the costs of (variant, samples), interleaved, and what quantized graphs lose."""
    seconds: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    peaks: dict[tuple[str, int], float] = dict.fromkeys(runs, 0.0)
    quality: dict[str, float] = {}
    for _ in range(rounds):
        for run in runs:
            variant, count = run
            arguments = [MODULE, variant, str(folder), "--samples", str(count)]
            measured = run_measured(arguments, folder)
            told = json.loads((folder / "told.json").read_text())
            seconds[run].append(told["seconds"])
            peaks[run] = max(peaks[run], measured.peak_mb)
            if "sqnr_db" in told:
                quality[variant] = told["sqnr_db"]
            click.echo(f"{variant} {count}: {told['seconds']:.1f} s", err=True)
    costs = [Cost(*run, tuple(seconds[run]), peaks[run]) for run in runs]
    return costs, quality


def report(
    costs: Sequence[Cost], quality: Mapping[str, float], samples: int, found: Mapping[str, object]
) -> str:
    by = {(cost.variant, cost.samples): cost for cost in costs}
    plain = by["plain", samples]
    header = ("variant", "samples", "s", "of plain", "peak, MB", "of plain")
    lines = [
        (
            VARIANTS[cost.variant],
            cost.samples,
            f"{cost.seconds:.1f}",
            f"{cost.times(by['plain', cost.samples]):.2f}" if ("plain", cost.samples) in by else "",
            f"{cost.peak_mb:.0f}",
            f"{cost.peak_mb / (by.get(('plain', cost.samples)) or plain).peak_mb:.2f}",
        )
        for cost in costs
    ]
    few, many = by["ranges", FEW], by["ranges", MANY]
    told = [
        f"Peak memory of statistics, {MANY} samples to {FEW}: {many.peak_mb / few.peak_mb:.2f}."
    ]
    if (PEER, samples) in by:
        peer, ours = by[PEER, samples], [by[v, samples] for v in ("ranges", "errors")]
        first = peer.times(ours[0])
        both = peer.seconds / sum(cost.seconds for cost in ours)
        memory = peer.peak_mb / max(cost.peak_mb for cost in ours)
        whole = by["peer_int8", samples].times(by["once", samples])
        told.append(
            f"ONNX Runtime's percentile calibrator takes {first:.1f} times as long as pass 1, all "
            f"that `calibrate` does, {both:.1f} times as long as both, and {memory:.1f} times the "
            f"memory. With quantized weights it takes {whole:.1f} times as long as pass 1 and what "
            "is quantized from it without clips, one scale a tensor and SmoothQuant's a channel."
        )
    if quality:
        given = ", ".join(f"{VARIANTS[name]} {value:.1f} dB" for name, value in quality.items())
        told.append(f"SQNR of the logits of {HELD_OUT} held-out rows: {given}.")
    return f"""# Calibration

{__doc__.split("[--samples 128]")[1].strip()}

{markdown_table(header, lines)}

{chr(10).join(told)}

Commit {source_commit()}. {environment_line(found)}
"""


@click.command()
@click.option("--samples", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--width", default=CONFIG.width, show_default=True)
@click.option("--depth", default=CONFIG.depth, show_default=True)
@click.option("--peer/--no-peer", default=True, help="Also ONNX Runtime's, which takes 10 GB.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(samples: int, rounds: int, width: int, depth: int, peer: bool, output: Path) -> None:
    """Measure and write calibration.md and .json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, max(samples, MANY), width, depth)
        runs = [(v, samples) for v in ("plain", "ranges", "errors")]
        costs, _ = measure(folder, runs, rounds)
        more = [(v, n) for n in (FEW, MANY) if n != samples for v in ("plain", "ranges")]
        growth, _ = measure(folder, more, 1)
        once = [("once", samples), ("ours", samples)]
        once += [(PEER, samples), ("peer_int8", samples)] if peer else []
        others, quality = measure(folder, once, 1)
    costs += [*growth, *others]
    found = environment(0)
    write_results(
        "calibration",
        output,
        report(costs, quality, samples, found),
        {
            "environment": found,
            "costs": [asdict(cost) for cost in costs],
            "sqnr_db": quality,
            "model": {"width": width, "depth": depth, "tokens": CONFIG.length},
        },
    )
