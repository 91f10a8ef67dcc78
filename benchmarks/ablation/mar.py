"""Measure a step of the ablation on a MAR, which has no logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.validate import validate_stage
from ...recipe.validate import ValidateOptions
from ...runtime.folders import read_spec
from ...validate.metrics.image import decibels
from ...validate.report.files import load_report
from ...validate.report.schema import QDQ, Report
from ...workspace.workspace import Workspace
from ..common import QuietReporter, markdown_table
from .measure import setbacks, site_cells

BATCH = 4
OF_MAR = """\
Noise is that which the denoiser predicts along trajectories of the FP32 model, of a seed that
calibration did not use: at some times behind some passes, of FP32's noisy tokens and of what the
quantized pass tells of them (the condition). Rows with the class and of the null class count alike,
before guidance. Sites are all quantized linears, each with all before it quantized. Latents are of
the pictures that FP32 and the quantized model make of the same seeds.
"""


@dataclass(frozen=True, slots=True)
class MarRow:
    """Hold one quantization, in dB; `latents_db` compares pictures of the same seeds."""

    format: str
    step: str
    noise_db: float
    condition_db: float
    sites_db: dict[str, float]
    latents_db: float | None = None


def run_mar_steps(
    workspace: Workspace, quantized: Iterator[tuple[str, str, Path]], held_out: int, seed: int
) -> Iterator[MarRow]:
    """Measure each (format, step, folder) along trajectories of `held_out` pictures.

    They are of all classes in turn.
    """
    _, spec = read_spec(workspace.folder("export"))
    options = ValidateOptions(
        labels=f"0-{spec.num_classes - 1}",
        samples=held_out,
        seed=seed,
        batch_size=BATCH,
        rounds=0,
        skip_engine=True,
    )
    for name, step, made in quantized:
        done = validate_stage(workspace, made.name, options, QuietReporter())
        yield mar_row(name, step, load_report(done.folder / "report.json"))


def mar_row(name: str, step: str, report: Report) -> MarRow:
    """Return what a report says of the Q/DQ graphs."""
    found = report.generation[QDQ]
    by_output = {row.output: decibels(row.sqnr_db) for row in found.outputs}
    sites = {site: decibels(value) for site, value in found.sites.items()}
    latents = None if found.pictures is None else decibels(found.pictures.latent_sqnr_db)
    return MarRow(
        name, step, by_output["denoise/noise"], by_output["pass/condition"], sites, latents
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
    """Name steps whose noise has a larger error than that of the step before, within a format."""
    errors = [(row.format, row.step, -row.noise_db, f"{row.noise_db:.1f}") for row in rows]
    return setbacks("noise", "dB", errors)
