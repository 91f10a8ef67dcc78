"""Format figures: each kind has one unit and one number of digits, in tables and in terminals."""

from __future__ import annotations

import math
from collections.abc import Callable

Format = Callable[[float | None], str]


def number(decimals: int, unit: str = "", *, scale: float = 1) -> Format:
    """Return a formatter: infinity as its sign, None as "not measured", no minus zero."""

    def text(value: float | None) -> str:
        if value is None:
            return "not measured"
        if math.isinf(value):
            return "\u221e"
        rounded = round(value * scale, decimals) + 0.0  # a zero has no sign
        return f"{rounded:.{decimals}f}{unit}"

    return text


DB, SSIM = number(2, " dB"), number(4)
SHARE, WHOLE = number(2, " %", scale=100), number(0, " %", scale=100)
TIMES, MS, SECONDS = number(2, "\u00d7"), number(2, " ms"), number(1, " s")
NATS, TOKENS, DISTANCE = number(5, " nats"), number(1), number(5)
LIKENESS, FID = number(4), number(3)
RATE, MEGABYTES = number(2), number(2, " MB")
COSINE, CROSS_ENTROPY, PERPLEXITY = number(6), number(4, " nats"), number(2)


def error_text(value: float | None) -> str:
    """Return a largest error, which may be of any size, in three digits."""
    return "not measured" if value is None else f"{value:.3g}"


# By the names that gates read; those that begin with a candidate or a part are like the plain ones.
METRICS: dict[str, Format] = {
    **dict.fromkeys(("psnr", "psnr_min", "psnr_drop", "psnr_vs_fp32", "psnr_vs_fp32_min"), DB),
    **dict.fromkeys(("decoder_psnr", "decoder_psnr_min"), DB),
    **dict.fromkeys(("ssim", "ssim_min", "ssim_drop", "ssim_vs_fp32", "ssim_vs_fp32_min"), SSIM),
    **dict.fromkeys(("latent_sqnr_db", "decoder_sqnr_db"), DB),
    **dict.fromkeys(("output_sqnr_db", "output_part_sqnr_db"), DB),
    **dict.fromkeys(("logits_sqnr_db", "condition_sqnr_db", "noise_sqnr_db", "site_sqnr_db"), DB),
    **dict.fromkeys(("token_agreement", "codebook_use", "identical", "top1", "top5"), SHARE),
    **dict.fromkeys(("ms_ssim", "ms_ssim_vs_fp32"), SSIM),
    **dict.fromkeys(("lpips", "lpips_vs_fp32", "dists", "dists_vs_fp32"), LIKENESS),
    **dict.fromkeys(("rfid", "rfid_rise"), FID),
    "codebook_perplexity": PERPLEXITY,
    "output_equal": SHARE,
    "output_cosine": COSINE,
    "output_max_error": error_text,
    "kl": NATS,
    "cross_entropy": CROSS_ENTROPY,
    "cross_entropy_rise": NATS,
    "perplexity": PERPLEXITY,
    "first_difference": TOKENS,
    "frechet_latent": DISTANCE,
    "frechet_features": DISTANCE,
    **dict.fromkeys(("compression", "packed_compression", "download_compression"), TIMES),
    "speedup": TIMES,
    **dict.fromkeys(("latency_ms", "p90_ms", "p99_ms", "load_ms", "first_ms"), MS),
    **dict.fromkeys(("images_per_s", "samples_per_s", "tokens_per_s"), RATE),
    "memory_mb": MEGABYTES,
}


def metric_text(name: str, value: float | None) -> str:
    """Return the value of a metric, such as `psnr_drop` or `engine.top1`, as all tables have it."""
    return METRICS.get(name.rpartition(".")[2], error_text)(value)  # of a report: any text


def size(count: int) -> str:
    """Return bytes in MB of 10^6 bytes; small files in kB, the smallest in bytes."""
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 100 else f"{count} B"
