"""Results of a validation, as its manifest has them."""

from __future__ import annotations

import msgspec

from .formats import metric_text


class ValidationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage: the metrics that are finite, by the names that gates read.

    ``inconclusive`` names those that may be chance: drops on too few or too different images,
    speedups whose rounds spread as far as they differ. ``download`` says what
    ``download_compression`` is of, "" where it was not measured; ``busy`` what others did on a busy
    machine while rounds were timed; ``opinions`` is the line on second opinions; ``gap`` says if
    the engine is far below its Q/DQ graph, ``remarks`` what the headline does not show.
    """

    metrics: dict[str, float]
    inconclusive: tuple[str, ...] = ()
    download: str = ""
    busy: str = ""
    opinions: str = ""
    gap: str = ""
    remarks: tuple[str, ...] = ()


POOR_DB = 20.0  # below it an image of 8 bits is off by more than a tenth of its range
# What stands in front of a figure, and behind it. Tokens of a generator, which alone has `top1`,
# are of images that both sides made of the same seeds: they inform, and judge nothing.
_FIGURES = (
    ("psnr_drop", "PSNR drop ", ""),
    ("output_sqnr_db", "SQNR ", ""),
    ("top1", "likeliest token equal ", ""),
    ("token_agreement", "tokens equal ", ""),
    ("noise_sqnr_db", "noise SQNR ", ""),
    ("compression", "", " smaller on disk"),
)


def summary(found: ValidationFacts) -> str:
    """Return the main figures in one line, rounded as in the report."""
    parts = []
    for name, before, behind in _FIGURES:
        if name in found.metrics:
            if name == "token_agreement" and "top1" in found.metrics:
                before += "(same seed) "
            doubt = " (inconclusive)" if name in found.inconclusive else ""
            parts.append(f"{before}{metric_text(name, found.metrics[name])}{behind}{doubt}")
    if "speedup" in found.metrics:
        parts.append(speed_text(found))
    return ", ".join(parts)


def poor_line(found: ValidationFacts) -> str:
    """Return a line where FP32 itself reconstructs so poorly that a drop says little; else ""."""
    metrics = found.metrics
    if "psnr" not in metrics or "psnr_drop" not in metrics:
        return ""
    of_fp32 = metrics["psnr"] + metrics["psnr_drop"]
    if of_fp32 >= POOR_DB:
        return ""
    return (
        f"FP32 itself reconstructs these images at {metric_text('psnr', of_fp32)} alone: judge by "
        "the tokens and the PSNR to FP32, and check that the images and the checkpoint fit"
    )


def speed_text(found: ValidationFacts) -> str:
    """Return how fast the engine is against FP32, in words that also fit a slower one."""
    speedup = found.metrics["speedup"]
    text = metric_text("speedup", speedup)
    busy = " on a busy machine" if found.busy else ""
    if "speedup" in found.inconclusive:
        return f"speed against FP32 inconclusive ({text}){busy}"
    if speedup >= 1:
        return f"{text} faster than FP32{busy}"
    return f"slower than FP32 ({text} its speed){busy}"


def download_line(found: ValidationFacts) -> str:
    """Return a line on what a device downloads, and on the size of the quantized weights alone."""
    weights = metric_text("packed_compression", found.metrics["packed_compression"])
    alone = f"quantized weights alone {weights} smaller"
    if not found.download:
        return alone
    smaller = metric_text("download_compression", found.metrics["download_compression"])
    return f"{found.download} {smaller} smaller, {alone}"
