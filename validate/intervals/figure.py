"""Define a figure of a report with its interval, and name the figures that have none."""

from __future__ import annotations

import math

import msgspec

from .bootstrap import LEVEL, Interval, Method, interval_of
from .sampled import Sampled

_EXTREME = "the worst of the samples tells nothing of those not measured"
_REPEATED = "images drawn twice bring the sets apart, so that drawing them again misleads"
# By their plain names: what no interval can be had of, and why.
_WORST = ("psnr_min", "ssim_min", "psnr_vs_fp32_min", "ssim_vs_fp32_min", "decoder_psnr_min")
WITHOUT_INTERVAL: dict[str, str] = {
    **dict.fromkeys(_WORST, _EXTREME),
    "output_max_error": _EXTREME,
    "output_part_sqnr_db": "all samples together say which part it is of",
    **dict.fromkeys(("codebook_use", "codebook_perplexity"), "more samples use more entries"),
    "memory_mb": "it is the highest of a few starts",
    **dict.fromkeys(("frechet_latent", "frechet_features", "rfid", "rfid_rise"), _REPEATED),
}
# Counted, not sampled: there is no chance in them.
COUNTED = ("compression", "packed_compression", "download_compression")
# Where both sides generate from the same seed, one other token leads to another image, which may be
# as good: what compares the two images informs, and decides nothing unless it is asked to.
SAME_SEED = (
    *("token_agreement", "identical", "first_difference", "latent_sqnr_db"),
    *("psnr_vs_fp32", "psnr_vs_fp32_min", "ssim_vs_fp32", "ssim_vs_fp32_min"),
    *("frechet_latent", "frechet_features"),
    *("ms_ssim_vs_fp32", "lpips_vs_fp32", "dists_vs_fp32"),
)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a metric's ``value``, the ``n`` samples behind it, and its interval of 95 %.

    ``n`` is 0 where nothing says them. ``value`` is None for decibels without any error. Without an
    interval ``why`` says the reason. ``method`` is "bca" or "percentile" of the bootstrap, "t" for
    Student's on few samples, "exact" for shares, "order" between two of the samples, for
    percentiles.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    method: Method | None = None
    why: str | None = None

    @classmethod
    def of(
        cls, value: float, sampled: Sampled | str, level: float = LEVEL, *, count: int = 0
    ) -> Figure:
        """Return the figure with its interval; a text in place of samples says why it has none.

        Then it is of `count` samples.
        """
        if isinstance(sampled, str):
            found = Interval(count, why=sampled)
        else:
            found = interval_of(sampled, level)
        return cls(
            value=value if math.isfinite(value) else None,
            n=found.n,
            low=found.low,
            high=found.high,
            method=found.method,
            why=found.why,
        )


def plain(metric: str) -> str:
    """Return a metric's name without its candidate or part: psnr of engine.psnr."""
    return metric.rpartition(".")[2]
