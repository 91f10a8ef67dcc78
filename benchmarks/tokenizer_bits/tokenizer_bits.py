"""Reproduce the table of PTQ-Tokenizer on our model: weights at 8 to 2 bits, method by method.

python -m arvg_trt.benchmarks.tokenizer_bits --data ../shared/data

Every figure is measured in the run. Compression is bytes of FP32 weights on disk over bytes of
`weights.safetensors` on disk, which also holds what stays in high precision.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ...numerics.scheme import Rounding
from ...pipeline.calibrate import calibrate_stage
from ...pipeline.export import export_any
from ...pipeline.quantize import quantize_stage
from ...recipe.calibrate import CalibrateOptions
from ...recipe.quantize import FLOAT_BITS, QuantizeMethod, QuantizeOptions
from ...runtime.images import Uint8Image, from_model, to_model
from ...runtime.tokenizer import ImageTokenizer
from ...samples.images import ImageSource
from ...validate.metrics.image import psnr
from ...workspace.workspace import Workspace
from ..common import (
    CALIBRATION_PHOTOGRAPHS,
    RESULTS,
    SIZE,
    QuietReporter,
    center_crops,
    data_folder,
    environment,
    environment_line,
    evaluation_sets,
    write_results,
)
from .tables import METHODS, Row, draw, grid_table, methods_table, sensitivity

GRID_METHOD: QuantizeMethod = "log_quantization"
GRID_BITS = (FLOAT_BITS, 8, 6, 4, 2)
PLOT = Path(__file__).parent.parent / "docs" / "tokenizer_bits.png"
PUBLISHED = """\
For comparison, the paper's table (their model, their images, per tensor): logarithmic
26.54 / 25.15 / 20.54 / 6.55 dB at 8 / 6 / 4 / 2 bits, uniform 25.91 / 14.84 / 9.69 / 7.83 dB."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Hold the PSNR of every image by set, and its tokens."""

    psnr: dict[str, list[float]]
    tokens: list[NDArray[np.int32]]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(itertools.chain.from_iterable(self.psnr.values()))

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def by_set(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.psnr.items()}

    def tokens_equal(self, other: Measurement) -> float:
        pairs = zip(self.tokens, other.tokens, strict=True)
        return float(np.mean([a == b for a, b in pairs]))


def measure(tokenizer: ImageTokenizer, images: Mapping[str, Sequence[Uint8Image]]) -> Measurement:
    found: dict[str, list[float]] = {name: [] for name in images}
    all_tokens = []
    for name, pictures in images.items():
        for picture in pictures:
            tokens, _ = tokenizer.encode(to_model(picture))
            assert tokens is not None
            all_tokens.append(tokens)
            found[name].append(psnr(picture, from_model(tokenizer.decode(tokens))))
    return Measurement(found, all_tokens)


class Bench:
    """Hold an exported and calibrated workspace, and the FP32 figures on the images."""

    def __init__(self, workspace: Workspace, images: Mapping[str, Sequence[Uint8Image]]) -> None:
        self.workspace = workspace
        self.images = images
        self.fp32 = measure(ImageTokenizer.open(workspace.folder("export")), images)
        self.checked: float | None = None

    def row(
        self,
        method: QuantizeMethod,
        encoder_bits: int,
        decoder_bits: int,
        rounding: Rounding = "nearest",
        bias_correction: bool = False,
    ) -> Row:
        """Quantize for real and measure what lies on disk."""
        name = f"{method}-{encoder_bits}-{decoder_bits}-{rounding}" + "-bias" * bias_correction
        options = QuantizeOptions(
            quantize_method=method,
            encoder_bits=encoder_bits,
            decoder_bits=decoder_bits,
            activation_bits=FLOAT_BITS,
            rounding=rounding,
            bias_correction=bias_correction,
        )
        done = quantize_stage(self.workspace, name, options, QuietReporter())
        found = measure(ImageTokenizer.open(done.folder), self.images)
        if self.checked is None:
            reference = measure(ImageTokenizer.reference(done.folder), self.images)
            self.checked = abs(found.mean - reference.mean)
        sizes = done.manifest.results
        click.echo(f"{name}: {found.mean:.2f} dB", err=True)
        return Row(
            method=method,
            encoder_bits=encoder_bits,
            decoder_bits=decoder_bits,
            psnr=found.by_set(),
            psnr_all=found.mean,
            psnr_images=found.values,
            psnr_drop=self.fp32.mean - found.mean,
            tokens_equal=found.tokens_equal(self.fp32),
            bytes=sizes["packed_bytes"],
            compression=sizes["fp32_bytes"] / sizes["packed_bytes"],
        )


def crops(sets: Mapping[str, ImageSource]) -> dict[str, list[Uint8Image]]:
    return {
        name: [image for _, image in center_crops(source, range(len(source.files)))]
        for name, source in sets.items()
    }


def report(
    bench: Bench,
    rows: Sequence[Row],
    grid: Mapping[tuple[int, int], Row],
    about: str,
    bits: Sequence[int],
) -> str:
    sets = list(bench.images)
    counts = ", ".join(f"{len(v)} {k}" for k, v in bench.images.items())
    fp32 = ", ".join(f"{k} {v:.2f}" for k, v in bench.fp32.by_set().items())
    return f"""\
# Weight bits of a tokenizer

Weight-only quantization of `{about}` ({counts} images, {SIZE}x{SIZE} centre crops, PSNR of uint8
images, mean over images). FP32: {fp32}, all {bench.fp32.mean:.2f} dB. Compression is bytes of FP32
weights on disk over bytes of `weights.safetensors`; the first and last convolutions of each half,
and halves at {FLOAT_BITS} bits, are stored as float16, norms and biases as float32.
Written by `python -m arvg_trt.benchmarks.tokenizer_bits`.

## Both halves at the same bits

{methods_table(rows, sets)}

![PSNR against compression](../../docs/{PLOT.name})

{PUBLISHED}

## Encoder and decoder apart: {GRID_METHOD}

Bits of the encoder down, of the decoder across; {FLOAT_BITS} is high precision. PSNR over
all images in dB (compression). Differences are paired over images, ± two standard errors.

{grid_table(grid, bench.fp32.mean, bits)}

{sensitivity(grid, bits)}

Figures come from ONNX Runtime's optimized session; on the first quantization it and the reference
session (no rewrites) differ by {bench.checked:.4f} dB.
{environment_line(environment(0))}
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder with kodak, art, calib256.")
@click.option("--model", default="cosmos-mini-di8x8", show_default=True)
@click.option("--checkpoint", help="Instead of the shipped weights.")
@click.option("--samples", default=32, show_default=True, help="Calibration crops.")
@click.option("--most", default=1000, show_default=True, help="Images of each set at most.")
@click.option("--bits", default=(8, 6, 4, 3, 2), multiple=True, show_default=True, type=int)
@click.option("--output", default=RESULTS, type=click.Path(path_type=Path), help="Results folder.")
@click.option("--plot", default=PLOT, type=click.Path(path_type=Path), help="PNG to write.")
def main(
    data: Path | None,
    model: str,
    checkpoint: str | None,
    samples: int,
    most: int,
    bits: Sequence[int],
    output: Path,
    plot: Path,
) -> None:
    """Measure PSNR and size of weight-only quantizations by method and bits."""
    images = crops(evaluation_sets(data, ("kodak", "art"), most))
    source = data_folder(data, "calib256") or CALIBRATION_PHOTOGRAPHS
    reporter = QuietReporter()
    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder) / "ws") as workspace:
        export_any(workspace, model, checkpoint, "skimage", (), reporter)
        calibrate_stage(workspace, CalibrateOptions(images=source, samples=samples), reporter)
        bench = Bench(workspace, images)
        rows = [bench.row(method, b, b) for method in METHODS for b in bits]
        known = {(r.encoder_bits, r.decoder_bits): r for r in rows if r.method == GRID_METHOD}
        grid_bits = [b for b in GRID_BITS if b == FLOAT_BITS or b in bits]
        pairs = itertools.product(grid_bits, grid_bits)
        grid = {
            pair: known.get(pair) or bench.row(GRID_METHOD, *pair)
            for pair in pairs
            if pair != (FLOAT_BITS, FLOAT_BITS)
        }
    values: dict[str, Any] = {
        "model": model,
        "images": {name: len(pictures) for name, pictures in images.items()},
        "calibration": {"source": Path(source).name, "samples": samples},
        "fp32_psnr": {**bench.fp32.by_set(), "all": bench.fp32.mean},
        "rows": [asdict(row) for row in rows],
        "grid": [asdict(row) for row in grid.values()],
        "reference_session_differs_db": bench.checked,
        "environment": environment(0),
    }
    text = report(bench, rows, grid, model, grid_bits)
    write_results("tokenizer_bits", output, text, values)
    draw(rows, bench.fp32.mean, model, plot)
    click.echo(text)
