"""The table of PTQ-Tokenizer on our own model: weights at 8 to 2 bits, method by method.

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

from ..artifacts import Workspace
from ..pipeline.calibrate import calibrate_stage
from ..pipeline.export import export_stage
from ..pipeline.quantize import quantize_stage
from ..recipe import FLOAT_BITS, CalibrateOptions, QuantizeMethod, QuantizeOptions
from ..runtime.image_sources import ImageSource
from ..runtime.images import Uint8Image, from_model, to_model
from ..runtime.tokenizer import ImageTokenizer
from ..sites import Rounding
from ..validate.metrics import psnr
from .common import (
    CALIBRATION_PHOTOGRAPHS,
    RESULTS,
    SIZE,
    QuietReporter,
    center_crops,
    data_folder,
    environment,
    environment_line,
    evaluation_sets,
    markdown_table,
    write_results,
)

METHODS: tuple[QuantizeMethod, ...] = (
    "per_tensor",
    "log_quantization",
    "per_channel",
    "per_channel_log",
)
GRID_METHOD: QuantizeMethod = "log_quantization"
GRID_BITS = (FLOAT_BITS, 8, 6, 4, 2)
PLOT = Path(__file__).parent.parent / "docs" / "tokenizer_bits.png"
PUBLISHED = """\
For comparison, the paper's table (their model, their images, per tensor): logarithmic
26.54 / 25.15 / 20.54 / 6.55 dB at 8 / 6 / 4 / 2 bits, uniform 25.91 / 14.84 / 9.69 / 7.83 dB."""


@dataclass(frozen=True, slots=True)
class Row:
    """One quantization: mean PSNR by image set and over all images, tokens equal to FP32's."""

    method: str
    encoder_bits: int
    decoder_bits: int
    psnr: dict[str, float]
    psnr_all: float
    psnr_images: tuple[float, ...]
    psnr_drop: float
    tokens_equal: float
    bytes: int
    compression: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """PSNR of every image by set, and its tokens."""

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
    """An exported and calibrated workspace, and the FP32 figures on the images."""

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


def methods_table(rows: Sequence[Row], sets: Sequence[str]) -> str:
    header = ["method", "bits", *(f"{s}, dB" for s in sets), "drop, dB", "tokens equal", "smaller"]
    return markdown_table(
        header,
        [
            [
                row.method,
                row.encoder_bits,
                *(f"{row.psnr[s]:.2f}" for s in sets),
                f"{row.psnr_drop:z.2f}",
                f"{row.tokens_equal:.1%}",
                f"{row.compression:.2f}x",
            ]
            for row in rows
        ],
    )


def grid_table(grid: Mapping[tuple[int, int], Row], fp32: float, bits: Sequence[int]) -> str:
    """Rows: bits of the encoder; columns: bits of the decoder."""

    def cell(pair: tuple[int, int]) -> str:
        if pair not in grid:
            return f"{fp32:.2f}"
        return f"{grid[pair].psnr_all:.2f} ({grid[pair].compression:.1f}x)"

    return markdown_table(
        ["encoder \\ decoder", *map(str, bits)],
        [[str(e), *(cell((e, d)) for d in bits)] for e in bits],
    )


def sensitivity(grid: Mapping[tuple[int, int], Row], bits: Sequence[int]) -> str:
    """Which half costs more when it alone is quantized, by width; paired over images."""
    lines = []
    for b in bits:
        if b == FLOAT_BITS:
            continue
        encoder, decoder = grid[b, FLOAT_BITS], grid[FLOAT_BITS, b]
        more = np.subtract(decoder.psnr_images, encoder.psnr_images)
        error = 2 * float(np.std(more)) / len(more) ** 0.5
        verdict = f"the {'encoder' if more.mean() > 0 else 'decoder'} is the more sensitive half"
        if abs(more.mean()) <= error:
            verdict = "no clear difference"
        lines.append(
            f"- {b} bits: encoder alone costs {encoder.psnr_drop:z.2f} dB, decoder alone "
            f"{decoder.psnr_drop:z.2f} dB, difference {more.mean():z.2f} ± {error:.2f}: {verdict}."
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], fp32: float, model: str, path: Path) -> None:
    """PSNR against compression, one line a method, bits beside the points."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    axes.axhline(fp32, color="0.5", linestyle="--", linewidth=1, label=f"FP32, {fp32:.2f} dB")
    for method, marker in zip(METHODS, "os^D", strict=True):
        mine = [row for row in rows if row.method == method]
        axes.plot(
            [r.compression for r in mine],
            [r.psnr_all for r in mine],
            marker=marker,
            markersize=5,
            label=method,
        )
    best: dict[int, Row] = {}
    for row in rows:
        if row.encoder_bits not in best or row.psnr_all > best[row.encoder_bits].psnr_all:
            best[row.encoder_bits] = row
    for bits, row in best.items():
        axes.annotate(
            f"{bits} bit",
            (row.compression, row.psnr_all),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xlabel("compression: bytes of FP32 weights / bytes on disk")
    axes.set_ylabel("PSNR, dB")
    axes.set_title(f"Weight-only quantization of {model}, both halves alike", fontsize=11)
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


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
        export_stage(workspace, model, checkpoint, "skimage", reporter)
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


if __name__ == "__main__":
    main()
