"""Write what the benchmark of weight bits measured, in tables and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...recipe.quantize import FLOAT_BITS, QuantizeMethod
from ..common import fixed, markdown_table

METHODS: tuple[QuantizeMethod, ...] = (
    "per_tensor",
    "log_quantization",
    "per_channel",
    "per_channel_log",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one quantization: mean PSNR by image set and of all, tokens equal to FP32's."""

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


def methods_table(rows: Sequence[Row], sets: Sequence[str]) -> str:
    header = ["method", "bits", *(f"{s}, dB" for s in sets), "drop, dB", "tokens equal", "smaller"]
    return markdown_table(
        header,
        [
            [
                row.method,
                row.encoder_bits,
                *(f"{row.psnr[s]:.2f}" for s in sets),
                fixed(row.psnr_drop, 2),
                f"{row.tokens_equal:.1%}",
                f"{row.compression:.2f}x",
            ]
            for row in rows
        ],
    )


def grid_table(grid: Mapping[tuple[int, int], Row], fp32: float, bits: Sequence[int]) -> str:
    """Return a table with a row per bits of the encoder, a column per bits of the decoder."""

    def cell(pair: tuple[int, int]) -> str:
        if pair not in grid:
            return f"{fp32:.2f}"
        return f"{grid[pair].psnr_all:.2f} ({grid[pair].compression:.1f}x)"

    return markdown_table(
        ["encoder \\ decoder", *map(str, bits)],
        [[str(e), *(cell((e, d)) for d in bits)] for e in bits],
    )


def sensitivity(grid: Mapping[tuple[int, int], Row], bits: Sequence[int]) -> str:
    """Say which part costs more when it alone is quantized, by width; paired over images."""
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
            f"- {b} bits: encoder alone costs {fixed(encoder.psnr_drop, 2)} dB, decoder alone "
            f"{fixed(decoder.psnr_drop, 2)} dB, difference {fixed(more.mean(), 2)} ± {error:.2f}: "
            f"{verdict}."
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], fp32: float, model: str, path: Path) -> None:
    """Draw PSNR against compression, one line a method, bits beside the points."""
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
