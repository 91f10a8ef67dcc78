"""Define the accuracy of a quantized generator: teacher-forced, and on images of the same seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from ..metrics.image import decibels
from ..metrics.logits import LogitsAccuracy, perplexity
from ..metrics.outputs import OutputAccuracy
from ..metrics.summary import Summary
from ..quality.reconstruction import PAIR_NAMES, PerImage


class FrechetRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the Frechet distance of FP32's and the candidate's images, on features [``width``].

    ``key`` names the metric, ``features`` describes the network. ``floor`` is the distance between
    two sets of as many FP32 images with other seeds: what chance alone makes of it.
    """

    key: str
    features: str
    width: int
    distance: float
    floor: float


class GeneratedImageAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Compare images that both sides generated freely from the same seeds and classes.

    ``token_agreement`` is the share of tokens that are the same at the same place.
    ``first_difference`` is, for each image, the number of tokens before the first different one, or
    None where all ``length`` are the same. Both are None and empty where tokens are continuous:
    then ``latent_sqnr_db`` compares the latents (None for no error, or discrete tokens). PSNR and
    SSIM compare 8-bit images with FP32's, SSIM only those with sides of 11 or more; so do the
    measures of ``pairs``, by name. ``decoder_psnr`` compares what the candidate's decoder makes of
    FP32's own tokens (None where it is FP32's). ``sums`` has, by image, its ``equal`` tokens or the
    energies of latents; a report of version 1 has none.
    """

    token_agreement: float | None
    first_difference: tuple[int | None, ...]
    length: int
    latent_sqnr_db: float | None
    psnr_vs_fp32: Summary
    ssim_vs_fp32: Summary | None
    decoder_psnr: Summary | None = None
    frechet: tuple[FrechetRow, ...] = ()
    sums: dict[str, tuple[float, ...]] = {}
    pairs: dict[str, PerImage] = {}

    @property
    def identical(self) -> float | None:
        """Return the share of images whose tokens are all the same."""
        found = self.first_difference
        return sum(at is None for at in found) / len(found) if found else None

    @property
    def median_first_difference(self) -> float | None:
        """Return the median number of tokens before the first different one.

        Images without a difference count with their whole length.
        """
        found = [self.length if at is None else at for at in self.first_difference]
        return float(statistics.median(found)) if found else None


class GeneratorAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was measured of one candidate; the rest is None or empty.

    ``outputs`` are those of graphs without logits, fed what FP32's were fed along its trajectory.
    ``sites`` has, in graph order, the SQNR in dB of each linear's output with all sites before it
    quantized, and with scales that are folded into it undone; None for no error. ``worst_sites``
    has, of the worst of them, ``signal`` and ``noise`` by sample.
    """

    logits: LogitsAccuracy | None = None
    outputs: tuple[OutputAccuracy, ...] = ()
    sites: dict[str, float | None] = {}
    worst_sites: dict[str, dict[str, tuple[float, ...]]] = {}
    pictures: GeneratedImageAccuracy | None = None


_LOGITS: dict[str, Callable[[LogitsAccuracy], float]] = {
    "kl": lambda a: a.kl,
    "top1": lambda a: a.top1,
    "top5": lambda a: a.top5,
    "logits_sqnr_db": lambda a: decibels(a.sqnr_db),
    "cross_entropy": lambda a: a.cross_entropy,
    "cross_entropy_rise": lambda a: a.cross_entropy - a.cross_entropy_fp32,
    "perplexity": lambda a: perplexity(a.cross_entropy),
}
_PICTURES: dict[str, Callable[[GeneratedImageAccuracy], float | None]] = {
    "token_agreement": lambda a: a.token_agreement,
    "identical": lambda a: a.identical,
    "first_difference": lambda a: a.median_first_difference,
    "psnr_vs_fp32": lambda a: decibels(a.psnr_vs_fp32.mean),
    "psnr_vs_fp32_min": lambda a: decibels(a.psnr_vs_fp32.min),
    "decoder_psnr": lambda a: decibels(a.decoder_psnr.mean) if a.decoder_psnr else None,
    "decoder_psnr_min": lambda a: decibels(a.decoder_psnr.min) if a.decoder_psnr else None,
    "ssim_vs_fp32": lambda a: a.ssim_vs_fp32.mean if a.ssim_vs_fp32 else None,
    "ssim_vs_fp32_min": lambda a: a.ssim_vs_fp32.min if a.ssim_vs_fp32 else None,
}
# The outputs of a MAR's two graphs.
_OUTPUTS = {"condition_sqnr_db": "pass/condition", "noise_sqnr_db": "denoise/noise"}
LATENT, NETWORK = "frechet_latent", "frechet_features"
GENERATION_NAMES: tuple[str, ...] = (
    *_LOGITS,
    *_OUTPUTS,
    "site_sqnr_db",
    *_PICTURES,
    *(f"{name}_vs_fp32" for name in PAIR_NAMES),
    "latent_sqnr_db",
    LATENT,
    NETWORK,
)


def generation_metrics(accuracy: GeneratorAccuracy) -> dict[str, float | None]:
    """Return values by GENERATION_NAMES, which gates read; None for what was not measured."""
    values: dict[str, float | None] = dict.fromkeys(GENERATION_NAMES)
    if accuracy.logits is not None:
        values |= {name: read(accuracy.logits) for name, read in _LOGITS.items()}
    by_output = {row.output: decibels(row.sqnr_db) for row in accuracy.outputs}
    values |= {name: by_output.get(output) for name, output in _OUTPUTS.items()}
    if accuracy.sites:
        values["site_sqnr_db"] = min(map(decibels, accuracy.sites.values()))
    pictures = accuracy.pictures
    if pictures is not None:
        values |= {name: read(pictures) for name, read in _PICTURES.items()}
        if pictures.token_agreement is None:
            values["latent_sqnr_db"] = decibels(pictures.latent_sqnr_db)
        values |= {row.key: row.distance for row in pictures.frechet}
        values |= {f"{name}_vs_fp32": row.mean for name, row in pictures.pairs.items()}
    return values
