"""Find the figures of a report that its own spread does not tell from no difference."""

from __future__ import annotations

from ..measure.tokenizer_accuracy import Summary
from ..metrics.paired import is_inconclusive
from .schema import Report

INCONCLUSIVE = "inconclusive"


def inconclusive_metrics(report: Report) -> tuple[str, ...]:
    """Return the names of metrics that may be chance, as gates read them.

    A drop is one if a paired test over the images does not tell it from 0, a speedup if the
    quartiles of its rounds do not tell it from 1.
    """
    names = []
    if report.headline in report.accuracy:
        found = report.accuracy[report.headline]
        drops = {
            "psnr_drop": (found.psnr_reference, found.psnr),
            "ssim_drop": (found.ssim_reference, found.ssim),
        }
        for name, (reference, own) in drops.items():
            differences = paired(reference, own)
            if differences is not None and is_inconclusive(differences):
                names.append(name)
    for part, row in report.latency.items():
        if row.speed.verdict == INCONCLUSIVE:
            names.append("speedup" if part == "total" else f"{part}.speedup")
    return tuple(names)


def paired(reference: Summary, own: Summary) -> list[float] | None:
    """Return FP32 minus candidate by image; None where only one of the two is without error."""
    pairs = list(zip(reference.each, own.each, strict=True))
    if any((a is None) is not (b is None) for a, b in pairs):
        return None
    return [0.0 if a is None or b is None else a - b for a, b in pairs]
