"""Print the main figures of a validation, also where its gates failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from ..errors import AccuracyError
from ..validate.facts import ValidationFacts
from ..workspace.facts import facts
from ..workspace.stage import StageResult


def print_figures(validated: StageResult) -> None:
    """Print the main figures of a validation, and where its report is."""
    metrics = facts(validated.manifest, ValidationFacts).metrics
    click.echo(summary(metrics))
    click.echo(packed_line(metrics))
    click.echo(str(validated.folder / "report.html"))


@contextlib.contextmanager
def figures_of_failures(as_json: bool) -> Iterator[None]:
    """Print the figures of a validation even if its gates failed."""
    try:
        yield
    except AccuracyError as error:
        if not as_json and error.stages:
            print_figures(error.stages[-1])
        raise


def summary(metrics: dict[str, float]) -> str:
    """Return the main figures in one line."""
    parts = [
        f"PSNR drop {metrics['psnr_drop']:.2f} dB" if "psnr_drop" in metrics else "",
        f"SQNR {metrics['output_sqnr_db']:.1f} dB" if "output_sqnr_db" in metrics else "",
        f"likeliest token equal {metrics['top1']:.1%}" if "top1" in metrics else "",
        f"tokens equal {metrics['token_agreement']:.1%}" if "token_agreement" in metrics else "",
        f"noise SQNR {metrics['noise_sqnr_db']:.1f} dB" if "noise_sqnr_db" in metrics else "",
        f"{metrics['compression']:.2f}x smaller on disk",
        f"{metrics['speedup']:.2f}x faster than FP32" if "speedup" in metrics else "",
    ]
    return ", ".join(part for part in parts if part)


def packed_line(metrics: dict[str, float]) -> str:
    return (
        f"packed weights {metrics['packed_compression']:.2f}x smaller "
        "(weights.safetensors, which no command loads)"
    )
