"""List how each metric is compared: which way is better, and what change counts as none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..formats import metric_text
from ..report.schema import HALF_PRECISION

POINTS = "pp"  # percentage points


@dataclass(frozen=True, slots=True)
class Rule:
    """Define how a metric is judged; ``tolerance`` is absolute, or a share of the baseline.

    ``machine`` metrics are judged on the same machine alone, and of these by default those alone
    decide that were timed in turn with FP32: milliseconds of two runs differ by the load of the
    machine. ``decides`` says whether a loss fails
    a comparison: None leaves it to what the metric is. A ``required`` one must be decided.
    """

    metric: str
    title: str
    better: Literal["higher", "lower"]
    tolerance: float
    relative: bool = False
    machine: bool = False
    decides: bool | None = None
    required: bool = False

    def text(self, value: float | None) -> str:
        return metric_text(self.metric, value)

    def change_text(self, change: float) -> str:
        """Return a change of the value; of shares in percentage points, not in per cent of them."""
        text = self.text(change)
        return f"{text.removesuffix(' %')} {POINTS}" if text.endswith(" %") else text

    @property
    def tolerance_text(self) -> str:
        if self.relative:
            return f"{100 * self.tolerance:g}%"
        return self.change_text(self.tolerance)


_RULES = (
    Rule("psnr", "PSNR to the original", "higher", 0.05),
    Rule("psnr_min", "PSNR to the original, worst image", "higher", 0.1),
    Rule("psnr_drop", "PSNR drop from FP32", "lower", 0.05),
    Rule("ssim", "SSIM to the original", "higher", 0.001),
    Rule("ssim_min", "SSIM to the original, worst image", "higher", 0.002),
    Rule("ssim_drop", "SSIM drop from FP32", "lower", 0.001),
    Rule("psnr_vs_fp32", "PSNR to FP32", "higher", 0.2),
    Rule("psnr_vs_fp32_min", "PSNR to FP32, worst image", "higher", 0.4),
    Rule("ssim_vs_fp32", "SSIM to FP32", "higher", 0.001),
    Rule("ssim_vs_fp32_min", "SSIM to FP32, worst image", "higher", 0.002),
    Rule("token_agreement", "Tokens equal to FP32", "higher", 0.005),
    Rule("latent_sqnr_db", "Latent SQNR", "higher", 0.2),
    Rule("decoder_sqnr_db", "Decoder SQNR", "higher", 0.2),
    Rule("decoder_psnr", "PSNR of the image decoder", "higher", 0.3),
    Rule("decoder_psnr_min", "PSNR of the image decoder, worst image", "higher", 0.6),
    Rule("output_sqnr_db", "SQNR of the worst output", "higher", 0.2),
    Rule("output_part_sqnr_db", "SQNR of an output's worst part", "higher", 0.3),
    Rule("output_cosine", "Cosine of the worst output", "higher", 0.0001),
    Rule("output_equal", "Equal integers of the worst output", "higher", 0.005),
    Rule("output_max_error", "Largest error of an output", "lower", 0.2, relative=True),
    Rule("identical", "Images with FP32's tokens", "higher", 0.02),
    Rule("first_difference", "Tokens before the first other one", "higher", 0.1, relative=True),
    Rule("kl", "Divergence of the logits, KL a token", "lower", 0.1, relative=True),
    Rule("top1", "Likeliest token is FP32's", "higher", 0.005),
    Rule("top5", "Of FP32's five likeliest tokens", "higher", 0.005),
    Rule("logits_sqnr_db", "Logits SQNR", "higher", 0.3),
    Rule("cross_entropy", "Cross-entropy", "lower", 0.002, decides=False),
    Rule("perplexity", "Perplexity", "lower", 0.002, relative=True, decides=False),
    Rule("cross_entropy_rise", "Cross-entropy above FP32's", "lower", 0.002),
    Rule("condition_sqnr_db", "SQNR of the condition", "higher", 0.3),
    Rule("noise_sqnr_db", "SQNR of the predicted noise", "higher", 0.3),
    Rule("site_sqnr_db", "SQNR of the worst site", "higher", 0.5),
    Rule("frechet_latent", "Fréchet distance, own latents", "lower", 0.2, relative=True),
    Rule("frechet_features", "Fréchet distance, features", "lower", 0.2, relative=True),
    Rule("ms_ssim", "MS-SSIM to the original", "higher", 0.001),
    Rule("ms_ssim_vs_fp32", "MS-SSIM to FP32", "higher", 0.001),
    Rule("lpips", "LPIPS to the original", "lower", 0.002),
    Rule("lpips_vs_fp32", "LPIPS to FP32", "lower", 0.002),
    Rule("dists", "DISTS to the original", "lower", 0.002),
    Rule("dists_vs_fp32", "DISTS to FP32", "lower", 0.002),
    Rule("codebook_use", "Codebook entries used", "higher", 0.02, relative=True),
    Rule("codebook_perplexity", "Codebook perplexity", "higher", 0.02, relative=True),
    Rule("rfid", "rFID", "lower", 0.02, relative=True),
    Rule("rfid_rise", "rFID above FP32's", "lower", 0.1),
    Rule("compression", "Size of what runs, smaller", "higher", 0.01, relative=True),
    Rule("download_compression", "Download, smaller", "higher", 0.01, relative=True),
    Rule("packed_compression", "Packed weights, smaller", "higher", 0.01, relative=True),
    Rule("speedup", "Speed against FP32", "higher", 0.1, relative=True, machine=True),
    Rule("latency_ms", "Engine latency, median", "lower", 0.1, True, machine=True, decides=False),
    Rule("p90_ms", "Engine latency, p90", "lower", 0.2, True, machine=True, decides=False),
    Rule("p99_ms", "Engine latency, p99", "lower", 0.2, True, machine=True, decides=False),
    Rule("images_per_s", "Images a second", "higher", 0.1, True, machine=True, decides=False),
    Rule("samples_per_s", "Samples a second", "higher", 0.1, True, machine=True, decides=False),
    Rule("tokens_per_s", "Tokens a second", "higher", 0.1, True, machine=True, decides=False),
    Rule("load_ms", "Opening the graphs", "lower", 0.2, True, machine=True, decides=False),
    Rule("first_ms", "First image or sample", "lower", 0.2, True, machine=True, decides=False),
    Rule("memory_mb", "Peak memory of a start", "lower", 0.05, True, machine=True, decides=False),
)

# What the engines for a GPU are built from has its main figures beside, which inform.
_OF_COPY = ("psnr_drop", "kl", "noise_sqnr_db", "output_sqnr_db", "output_part_sqnr_db")
RULES = (
    *_RULES,
    *(
        replace(
            rule,
            metric=f"{HALF_PRECISION}.{rule.metric}",
            title=f"{rule.title}, FP16 copy for TensorRT",
            decides=False,
        )
        for rule in _RULES
        if rule.metric in _OF_COPY
    ),
)
