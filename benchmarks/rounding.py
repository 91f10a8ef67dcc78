"""Measure what rounding with data gains on a tokenizer's weights at few bits.

python -m arvg_trt.benchmarks.rounding [--data ../shared/data]

To nearest, with errors compensated on the calibration crops (gptq), and with corrected biases too;
weight-only, every quantization made and read from disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ..numerics.scheme import Rounding
from ..pipeline.calibrate import calibrate_stage
from ..pipeline.export import export_any
from ..recipe.calibrate import CalibrateOptions
from ..recipe.quantize import QuantizeMethod
from ..workspace.workspace import Workspace
from .common import (
    CALIBRATION_PHOTOGRAPHS,
    RESULTS,
    SIZE,
    QuietReporter,
    data_folder,
    environment,
    environment_line,
    evaluation_sets,
    fixed,
    markdown_table,
    write_results,
)
from .tokenizer_bits.tables import Row
from .tokenizer_bits.tokenizer_bits import Bench, crops

METHODS: tuple[QuantizeMethod, ...] = ("per_channel", "per_channel_log")
STEPS: dict[str, tuple[Rounding, bool]] = {
    "nearest": ("nearest", False),
    "gptq": ("gptq", False),
    "gptq, biases corrected": ("gptq", True),
}


def report(bench: Bench, rows: Sequence[tuple[str, float, Row]], model: str, samples: int) -> str:
    counts = ", ".join(f"{len(v)} {k}" for k, v in bench.images.items())
    lines = [
        (
            row.method,
            row.encoder_bits,
            step,
            f"{row.psnr_all:.2f}",
            fixed(row.psnr_drop, 2),
            f"{row.tokens_equal:.1%}",
            f"{row.compression:.2f}x",
            f"{seconds:.0f}",
        )
        for step, seconds, row in rows
    ]
    header = ("method", "bits", "rounding", "PSNR, dB", "drop, dB", "tokens equal", "smaller", "s")
    return f"""\
# Rounding of a tokenizer's weights

`{model}`, both halves at the same bits, weight-only; {counts} images, {SIZE}x{SIZE} centre crops,
PSNR of uint8 images, mean over images; {samples} other crops to calibrate. FP32:
{bench.fp32.mean:.2f} dB. Seconds are of quantizing and measuring, on a shared machine.
Written by `python -m arvg_trt.benchmarks.rounding`.

{markdown_table(header, lines)}

{environment_line(environment(0))}
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder with kodak, art, calib256.")
@click.option("--model", default="cosmos-mini-di8x8", show_default=True)
@click.option("--samples", default=32, show_default=True, help="Calibration crops.")
@click.option("--most", default=1000, show_default=True, help="Images of each set at most.")
@click.option("--bits", default=(4, 3, 2), multiple=True, show_default=True, type=int)
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
def main(
    data: Path | None, model: str, samples: int, most: int, bits: Sequence[int], output: Path
) -> None:
    """Measure PSNR of weight-only quantizations by grid, bits and rounding."""
    images = crops(evaluation_sets(data, ("kodak", "art"), most))
    source = data_folder(data, "calib256") or CALIBRATION_PHOTOGRAPHS
    reporter = QuietReporter()
    rows = []
    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder) / "ws") as workspace:
        export_any(workspace, model, None, "skimage", (), reporter)
        calibrate_stage(workspace, CalibrateOptions(images=source, samples=samples), reporter)
        bench = Bench(workspace, images)
        for method in METHODS:
            for b in bits:
                for step, (rounding, correct) in STEPS.items():
                    start = time.perf_counter()
                    row = bench.row(method, b, b, rounding, correct)
                    rows.append((step, time.perf_counter() - start, row))
    text = report(bench, rows, model, samples)
    values = {
        "model": model,
        "calibration": {"source": Path(source).name, "samples": samples},
        "fp32_psnr": bench.fp32.mean,
        "rows": [{"rounding": step, "seconds": s, **asdict(row)} for step, s, row in rows],
        "environment": environment(0),
    }
    write_results("rounding", output, text, values)
    click.echo(text)


if __name__ == "__main__":
    main()
