"""Measure what a generator gains where scalings are chosen by weights as GPTQ rounds them.

python -m arvg_trt.benchmarks.ablation.scaling_choice [--preset llamagen-w8a8]

Each preset is quantized twice on the same samples: its scalings are chosen as if weights were
rounded to nearest, as they were until version 0.3, and with the weights that GPTQ makes of one half
of the samples, judged on the other. The presets of MAR name GPS for every input; with
`smoothing = "search"` in its place there is something to choose.
"""

from __future__ import annotations

import contextlib
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import click
from msgspec.structs import replace

from ...graph.sites import load_sites
from ...pipeline.calibrate import calibrate_stage
from ...pipeline.export import export_any
from ...pipeline.quantize import quantize_stage
from ...quantize.scaling import token_rounding
from ...recipe.file import load_recipe
from ...recipe.quantize import QuantizeOptions
from ...runtime.generator import TEACHER_FORCED
from ...workspace.workspace import Workspace
from ..common import (
    RESULTS,
    QuietReporter,
    environment,
    environment_line,
    generated_rows,
    markdown_table,
    write_results,
)
from .ablation import BATCH, HELD_OUT_SEED, MAR
from .mar import run_mar_steps
from .measure import comparable, graph_model, measure

PRESETS = ("llamagen-w8a8", "llamagen-w6a6", "mar-w8a8", "mar-w6a6")
NEAREST, GPTQ = CHOICES = ("as if rounded to nearest", "as rounded by GPTQ")
ABOUT = __doc__.split("[--preset llamagen-w8a8]")[1].strip()


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one quantization: processor seconds, and SQNR in dB of logits, or of MAR's noise."""

    preset: str
    choice: str
    seconds: float
    sqnr_db: float
    top1: float | None = None


def rows_of(preset: str, held_out: int, scratch: Path) -> list[Row]:
    """Quantize a preset with both choices, and measure both on pictures of another seed."""
    recipe = load_recipe(preset)
    options = replace(recipe.quantize, smoothing="search", decoder_bits=None)
    found = []
    with Workspace(scratch / "ws") as workspace:
        export_any(workspace, recipe.model, None, "skimage", (), QuietReporter())
        calibrate_stage(workspace, recipe.calibrate, QuietReporter())
        for k, choice in enumerate(CHOICES):
            made, seconds = quantized(workspace, f"choice{k}", options, choice)
            if recipe.model == MAR:
                step = iter([(preset, choice, made)])
                (row,) = run_mar_steps(workspace, step, held_out, HELD_OUT_SEED)
                found.append(Row(preset, choice, seconds, row.noise_db))
            else:
                logits_db, top1 = measured(workspace, made, held_out, scratch / "held")
                found.append(Row(preset, choice, seconds, logits_db, top1))
            click.echo(str(found[-1]), err=True)
    return found


def quantized(
    workspace: Workspace, name: str, options: QuantizeOptions, choice: str
) -> tuple[Path, float]:
    """Return the folder of a quantization, and the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.ExitStack() as stack:
        if choice == NEAREST:  # no weight is one that data rounds
            stack.enter_context(mock.patch.object(token_rounding, "tasks_of", return_value=[]))
        made = quantize_stage(workspace, name, options, QuietReporter()).folder
    after = resource.getrusage(resource.RUSAGE_SELF)
    return made, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(workspace: Workspace, made: Path, held_out: int, scratch: Path) -> tuple[float, float]:
    """Return the SQNR of the logits, and the share of likeliest tokens that are FP32's."""
    exported = workspace.folder("export")
    if not scratch.is_dir():
        generated_rows(exported, scratch, held_out, HELD_OUT_SEED)
    tensors = comparable(load_sites(exported).of_graph(TEACHER_FORCED))
    reference, candidate = (graph_model(folder, tensors) for folder in (exported, made))
    samples = scratch / "calibrate" / "samples"
    found = measure(reference, candidate, samples, BATCH, tensors)
    return found.logits_db, found.top1


def cell(row: Row) -> str:
    top1 = "" if row.top1 is None else f", {row.top1:.1%}"
    return f"{row.sqnr_db:.2f} dB{top1}, {row.seconds:.0f} s"


def report(rows: Sequence[Row], held_out: int) -> str:
    lines = []
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        lines.append((one.preset, cell(one), cell(other)))
    header = ("preset", f"chosen {NEAREST}", f"chosen {GPTQ}")
    return f"""# Scalings chosen by weights as they are rounded

{ABOUT}

SQNR of the logits and likeliest tokens equal to FP32's, or SQNR of the noise that MAR's denoiser
predicts, of {held_out} pictures of seed {HELD_OUT_SEED}; processor seconds of `quantize`. The image
decoder stays FP32. Written by `python -m arvg_trt.benchmarks.ablation.scaling_choice`.

{markdown_table(header, lines)}

{environment_line(environment(0))}
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--preset", "presets", multiple=True, default=PRESETS, type=click.Choice(PRESETS))
@click.option("--held-out", default=20, show_default=True, help="Pictures to measure on.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(presets: Sequence[str], held_out: int, output: Path) -> None:
    """Quantize presets with both choices and write scaling_choice.md and .json."""
    rows: list[Row] = []
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(preset, held_out, Path(folder))
    values = {
        "environment": environment(0),
        "held_out": held_out,
        "rows": [asdict(row) for row in rows],
    }
    write_results("scaling_choice", output, report(rows, held_out), values)


if __name__ == "__main__":
    main()
