"""Results of a validation, as its manifest has them."""

from __future__ import annotations

import msgspec


class ValidationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage: the metrics that are finite, by the names that gates read."""

    metrics: dict[str, float]


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
    """Return a line on the size of the packed weights."""
    return (
        f"packed weights {metrics['packed_compression']:.2f}x smaller "
        "(weights.safetensors, which no command loads)"
    )
