"""Show a tokenizer's quality beyond PSNR and SSIM: learned distances, codebook use, rFID."""

from __future__ import annotations

from ..formats import FID, LIKENESS, PERPLEXITY, SHARE, SSIM, Format
from ..report.cells import SHORT
from ..report.page import Table
from ..report.schema import Report
from .reconstruction import PAIR_NAMES

QUALITY_ROWS: tuple[tuple[str, str, Format], ...] = (
    ("MS-SSIM to the original, mean", "ms_ssim", SSIM),
    ("MS-SSIM to FP32, mean", "ms_ssim_vs_fp32", SSIM),
    ("LPIPS to the original, mean", "lpips", LIKENESS),
    ("LPIPS to FP32, mean", "lpips_vs_fp32", LIKENESS),
    ("DISTS to the original, mean", "dists", LIKENESS),
    ("DISTS to FP32, mean", "dists_vs_fp32", LIKENESS),
    ("Codebook perplexity", "codebook_perplexity", PERPLEXITY),
    ("rFID", "rfid", FID),
    ("rFID above FP32's", "rfid_rise", FID),
)


def quality_reference(report: Report) -> dict[str, str]:
    """Return what FP32 has of these rows, by name."""
    if report.headline not in report.accuracy:
        return {}
    quality = report.accuracy[report.headline].quality
    formats = {name: text for _, name, text in QUALITY_ROWS}
    found = {
        name: formats[name](quality.pairs[name].reference.mean)
        for name in PAIR_NAMES
        if name in quality.pairs
    }
    if quality.codebook_reference is not None:
        found["codebook_perplexity"] = PERPLEXITY(quality.codebook_reference.perplexity)
    if quality.rfid is not None:
        found["rfid"] = FID(quality.rfid.reference)
    return found


def quality_caption(report: Report) -> str:
    """Return what a reader of these rows has to know: of how many images rFID is."""
    rows = (accuracy.quality.rfid for accuracy in report.accuracy.values())
    rfid = next((row for row in rows if row is not None), None)
    if rfid is None:
        return ""
    text = f"rFID is of {rfid.images:,} images, on {rfid.features}."
    if rfid.images <= rfid.width:
        text += (
            f" With no more images than its {rfid.width:,} features it is biased upward: compare "
            "it with FP32's of the same images alone."
        )
    return text


def codebook_table(report: Report) -> Table:
    """Return how each group of channels uses the codebook, where there are several."""
    shown = {key: a.quality for key, a in report.accuracy.items() if a.quality.codebook is not None}
    columns = {}
    for key, quality in shown.items():
        if quality.codebook_reference is not None:
            columns["FP32"] = quality.codebook_reference.groups
        if quality.codebook is not None:
            columns[SHORT[key]] = quality.codebook.groups
    count = max((len(groups) for groups in columns.values()), default=0)
    first = next((q.codebook for q in shown.values() if q.codebook is not None), None)
    rows = [
        (
            str(k + 1),
            *(
                text
                for groups in columns.values()
                for text in (SHARE(groups[k].used), PERPLEXITY(groups[k].perplexity))
            ),
        )
        for k in range(count)
    ]
    return Table(
        title="Codebook by group",
        header=(
            "Group",
            *(f"{what}, {name}" for name in columns for what in ("Entries used", "Perplexity")),
        ),
        rows=tuple(rows) if count > 1 else (),
        caption=f"Of {first.tokens:,} tokens each, of {first.size:,} entries." if first else "",
        folded=True,
    )
