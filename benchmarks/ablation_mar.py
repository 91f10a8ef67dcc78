"""Measure a step of the ablation on a MAR, which has no logits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from ..numerics.noise import SignalAndNoise
from ..runtime.generator import read_spec
from ..samples.generated import GeneratedSamples
from ..validate.measure.generator_accuracy import GeneratorAccuracy
from ..validate.measure.teacher_forcing import measure_teacher_forced
from ..validate.measure.teacher_forcing_runs import (
    TrajectoryForcing,
    compared_graphs,
)
from ..validate.metrics.image import decibels
from ..validate.report.schema import QDQ
from .ablation_measure import generated, setbacks, site_cells
from .common import markdown_table

BATCH = 4
OF_MAR = """\
Noise is that which the denoiser predicts along trajectories of the FP32 model, of a seed that
calibration did not use: at some times behind some passes, of FP32's noisy tokens and of what the
quantized pass tells of them (the condition). Rows with the class and of the null class count alike,
before guidance. Sites are all quantized linears, each with all before it quantized.
"""


@dataclass(frozen=True, slots=True)
class MarRow:
    """One quantization, in dB; `latents` is of those of pictures of the same seeds."""

    format: str
    step: str
    noise_db: float
    condition_db: float
    sites_db: dict[str, float]
    latents_db: float | None = None


def held_out_trajectory(exported: Path, folder: Path, count: int, seed: int) -> TrajectoryForcing:
    """FP32's runs behind `count` pictures of all classes in turn, kept in `folder`."""
    _, spec = read_spec(exported)
    labels = tuple(islice(cycle(range(spec.num_classes)), count))
    assert spec.recording is not None
    asked = GeneratedSamples(exported, spec, labels, seed, batch_size=BATCH)
    found = TrajectoryForcing(asked, spec.recording, folder)
    for _ in found.batches():
        pass
    return found


def run_mar_steps(
    exported: Path,
    quantized: Iterator[tuple[str, str, Path]],
    held_out: int,
    count: int,
    seed: int,
) -> Iterator[MarRow]:
    """Measure each (format, step, folder); `count` pictures are generated and compared."""
    with tempfile.TemporaryDirectory() as folder:
        trajectory = held_out_trajectory(exported, Path(folder), held_out, seed)
        wanted = generated(exported, count, seed).tokens if count else None
        for name, step, made in quantized:
            graphs = compared_graphs(exported, {QDQ: made}, trajectory.outputs, 0)
            found = measure_teacher_forced(trajectory.runs(), graphs, lambda done: None)[QDQ]
            energy = SignalAndNoise()
            if wanted is not None:
                energy.add(wanted, generated(made, count, seed).tokens)
            yield mar_row(name, step, found, energy.decibels() if count else None)


def mar_row(
    name: str, step: str, found: GeneratorAccuracy, latents_db: float | None = None
) -> MarRow:
    by_output = {row.output: decibels(row.sqnr_db) for row in found.outputs}
    sites = {site: decibels(value) for site, value in found.sites.items()}
    return MarRow(
        name, step, by_output["denoise/noise"], by_output["pass/condition"], sites, latents_db
    )


def mar_table(rows: Sequence[MarRow]) -> str:
    header = (
        "format",
        "",
        "noise SQNR, dB",
        "condition SQNR, dB",
        "least site, dB",
        "median site, dB",
        "latents of pictures, dB",
    )
    return markdown_table(header, [mar_cells(row) for row in rows])


def mar_cells(row: MarRow) -> tuple[str, ...]:
    return (
        row.format,
        row.step,
        f"{row.noise_db:.1f}",
        f"{row.condition_db:.1f}",
        *site_cells(row.sites_db),
        "" if row.latents_db is None else f"{row.latents_db:.1f}",
    )


def mar_setbacks(rows: Sequence[MarRow]) -> list[str]:
    """Steps whose noise has a larger error than that of the step before, within a format."""
    errors = [(row.format, row.step, -row.noise_db, f"{row.noise_db:.1f}") for row in rows]
    return setbacks("noise", "dB", errors)
