"""Show a generator's numbers as tables and as the main figures of a report."""

from __future__ import annotations

from ..formats import (
    CROSS_ENTROPY,
    DB,
    DISTANCE,
    LIKENESS,
    NATS,
    PERPLEXITY,
    SHARE,
    SSIM,
    TOKENS,
    Format,
    size,
)
from ..measure.generator_accuracy import GeneratedImageAccuracy, GeneratorAccuracy
from ..metrics.image import decibels
from ..metrics.logits import perplexity
from .cells import CANDIDATES, SHORT
from .interval_tables import column_title, headline_interval
from .page import KeyFigure, Table
from .schema import FP32, Report, metrics

ROWS: tuple[tuple[str, str, Format], ...] = (
    ("Divergence of the logits, KL a token", "kl", NATS),
    ("Likeliest token is FP32's", "top1", SHARE),
    ("Of FP32's five likeliest tokens", "top5", SHARE),
    ("Logits SQNR", "logits_sqnr_db", DB),
    ("Cross-entropy of the tokens", "cross_entropy", CROSS_ENTROPY),
    ("Perplexity", "perplexity", PERPLEXITY),
    ("SQNR of the condition, what a pass tells the denoiser", "condition_sqnr_db", DB),
    ("SQNR of the predicted noise", "noise_sqnr_db", DB),
    ("SQNR of the worst site", "site_sqnr_db", DB),
)
IMAGE_ROWS: tuple[tuple[str, str, Format], ...] = (
    ("Tokens equal to FP32's", "token_agreement", SHARE),
    ("Images of the same tokens", "identical", SHARE),
    ("Tokens before the first other one, median", "first_difference", TOKENS),
    ("Latent SQNR", "latent_sqnr_db", DB),
    ("PSNR to FP32's image, mean", "psnr_vs_fp32", DB),
    ("PSNR to FP32's image, worst", "psnr_vs_fp32_min", DB),
    ("SSIM to FP32's image, mean", "ssim_vs_fp32", SSIM),
    ("MS-SSIM to FP32's image, mean", "ms_ssim_vs_fp32", SSIM),
    ("LPIPS to FP32's image, mean", "lpips_vs_fp32", LIKENESS),
    ("DISTS to FP32's image, mean", "dists_vs_fp32", LIKENESS),
    ("PSNR of the decoder alone, FP32's tokens, mean", "decoder_psnr", DB),
    ("PSNR of the decoder alone, FP32's tokens, worst", "decoder_psnr_min", DB),
)


OF_TOKENS = (
    "Each goes on from its own tokens: what follows the first other token is another draw, which "
    "may be as good."
)
OF_LATENTS = "Each goes on from its own tokens, in the same order and with the same noise."


def generator_tables(report: Report) -> tuple[Table, ...]:
    """Return what a generator's report has before sizes and speed; some may have no rows."""
    return (_forced(report), _images(report), _frechet(report), _each_image(report))


def _shown(report: Report) -> dict[str, GeneratorAccuracy]:
    return {key: report.generation[key] for key in CANDIDATES if key in report.generation}


def _has_tokens(accuracy: GeneratorAccuracy) -> bool:
    return accuracy.pictures is not None and accuracy.pictures.token_agreement is not None


def _measured(
    report: Report,
    rows: tuple[tuple[str, str, Format], ...],
    reference: dict[str, str],
    *,
    title: str,
    caption: str = "",
) -> Table:
    """Return a table of the metrics that a candidate has, and the candidates that have one."""
    value = metrics(report)
    shown = [
        key
        for key in _shown(report)
        if any(value[f"{key}.{name}"] is not None for _, name, _ in rows)
    ]
    return Table(
        title=title,
        header=("Metric", "FP32", *(CANDIDATES[key] for key in shown), column_title(report)),
        rows=tuple(
            (
                label,
                reference.get(name, ""),
                *(text(value[f"{key}.{name}"]) for key in shown),
                headline_interval(report, name),
            )
            for label, name, text in rows
            if any(value[f"{key}.{name}"] is not None for key in shown)
        ),
        caption=caption,
    )


def _forced(report: Report) -> Table:
    logits = [a.logits for a in _shown(report).values() if a.logits]
    reference = {}
    if logits:
        reference = {
            "cross_entropy": CROSS_ENTROPY(logits[0].cross_entropy_fp32),
            "perplexity": PERPLEXITY(perplexity(logits[0].cross_entropy_fp32)),
        }
    return _measured(report, ROWS, reference, title="The same tokens given to both")


def same_seed_caption(report: Report) -> str:
    """Return how images of one seed come to differ; empty for what is no generator."""
    if not report.generation:
        return ""
    return OF_TOKENS if any(map(_has_tokens, _shown(report).values())) else OF_LATENTS


def _images(report: Report) -> Table:
    caption = same_seed_caption(report)
    return _measured(report, IMAGE_ROWS, {}, title="Images of the same seeds", caption=caption)


def _frechet(report: Report) -> Table:
    shown = {k: a.pictures for k, a in _shown(report).items() if a.pictures and a.pictures.frechet}
    first: GeneratedImageAccuracy | None = next(iter(shown.values()), None)
    count = len(report.data.pictures)
    return Table(
        title="Fréchet distance to FP32's images",
        header=("Features", "Two sets of FP32", *(CANDIDATES[key] for key in shown)),
        rows=tuple(
            (
                row.features,
                DISTANCE(row.floor),
                *(DISTANCE(found.frechet[k].distance) for found in shown.values()),
            )
            for k, row in enumerate(first.frechet if first else ())
        ),
        caption=f"Of {count} images. Not FID: that is of Inception's features, of tens of "
        "thousands of images, against real ones. Two sets of FP32 images of other seeds show "
        "what chance alone makes of so few.",
    )


def _each_image(report: Report) -> Table:
    shown = {k: a.pictures for k, a in _shown(report).items() if a.pictures}
    columns: list[tuple[str, ...]] = []
    header = ["Image"]
    for key, accuracy in shown.items():
        if accuracy.first_difference:
            columns.append(
                tuple("none" if at is None else str(at + 1) for at in accuracy.first_difference)
            )
            header.append(f"First other token, {SHORT[key]}")
        columns.append(tuple(DB(decibels(v)) for v in accuracy.psnr_vs_fp32.each))
        header.append(f"PSNR {SHORT[key]} to FP32")
        if accuracy.ssim_vs_fp32:
            columns.append(tuple(SSIM(v) for v in accuracy.ssim_vs_fp32.each))
            header.append(f"SSIM {SHORT[key]} to FP32")
    return Table(
        title="Image by image",
        header=tuple(header),
        rows=tuple(zip(report.data.pictures, *columns, strict=True)) if shown else (),
        folded=True,
    )


def memory_table(report: Report) -> Table:
    """Return what an image takes in memory while a batch is made, beside weights."""
    names = {FP32: "FP32", **CANDIDATES}
    shown = {key: report.memory[key] for key in names if key in report.memory}
    first = next(iter(shown.values()), None)
    rows = [("Keys and values of all tokens", *(size(found.cache) for found in shown.values()))]
    if any(found.peak is not None for found in shown.values()):
        peaks = ("" if f.peak is None else size(f.peak) for f in shown.values())
        rows.append(("Peak above the opened graphs", *peaks))
    return Table(
        title="Memory an image",
        header=("What", *(names[key] for key in shown)),
        rows=tuple(rows) if shown else (),
        caption=f"In a batch of {first.images if first else 0}, on the CPU, each in a process of "
        "its own.",
    )


def cache_table(report: Report) -> Table:
    """Return how each attention stores keys and values."""
    return Table(
        title="Stored keys and values",
        header=("Attention", "Type", "Keys", "Values", "SQNR of keys", "SQNR of values"),
        rows=tuple(
            (
                row.name,
                row.type,
                *((kind or "").replace("_", " ") for kind in (row.keys, row.values)),
                *("" if db is None else DB(db) for db in (row.key_sqnr_db, row.value_sqnr_db)),
            )
            for row in report.caches
        ),
        caption="Rounding alone, on samples that scales were not fitted to.",
        folded=True,
    )


def generator_key_figures(report: Report) -> list[KeyFigure]:
    """Return the main numbers of the headline candidate."""
    value = metrics(report)
    figures = [
        ("Likeliest token is FP32's", SHARE, "top1", f"five likeliest {SHARE(value['top5'])}"),
        ("Divergence a token", NATS, "kl", f"logits SQNR {DB(value['logits_sqnr_db'])}"),
        (
            "SQNR of the predicted noise",
            DB,
            "noise_sqnr_db",
            f"of the condition {DB(value['condition_sqnr_db'])}",
        ),
        (
            "Tokens equal, same seed",
            SHARE,
            "token_agreement",
            f"first other after {TOKENS(value['first_difference'])} in the median",
        ),
        ("Latent SQNR, same seed", DB, "latent_sqnr_db", f"PSNR {DB(value['psnr_vs_fp32'])}"),
    ]
    return [
        KeyFigure(label=label, value=text(value[name]), detail=detail)
        for label, text, name, detail in figures
        if value[name] is not None
    ]
