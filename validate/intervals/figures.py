"""Say what samples each metric of a report is made of, and compute its interval from them.

A metric is a row of one of the tables here, beside its row among the values that gates read; one
that has no row has no interval, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..measure.generator_accuracy import GeneratedImageAccuracy
from ..measure.tokenizer_accuracy import CandidateAccuracy
from ..metrics.logits import LogitsAccuracy
from ..metrics.outputs import OutputAccuracy
from ..metrics.summary import Summary
from ..metrics.sums import Sums
from ..quality.reconstruction import PAIR_NAMES, PerImage
from .figure import WITHOUT_INTERVAL, plain
from .sampled import (
    Floats,
    Sampled,
    decibels_of,
    mean,
    median,
    over,
    ratio,
    share,
    sqnr,
)
from .speeds import TIMED, speed_sampled

if TYPE_CHECKING:
    from ..report.schema import Report

NOT_KEPT = "the report keeps no values by sample: it is of an older version"


def pair_mean(name: str, found: PerImage) -> Sampled:
    """Return the mean of a measure by image: MS-SSIM is 1 at most, a distance 0 at least."""
    return mean(found.each, most=1.0) if name == "ms_ssim" else mean(found.each, least=0.0)


def pair_of(name: str, side: str) -> Callable[[CandidateAccuracy], Sampled]:
    """Return how a measure of pairs of images is read: LPIPS and its like, by image.

    Raises, when called, KeyError: it was not measured.
    """

    def read(accuracy: CandidateAccuracy) -> Sampled:
        return pair_mean(name, getattr(accuracy.quality.pairs[name], side))

    return read


TOKENIZER: dict[str, Callable[[CandidateAccuracy], Sampled]] = {
    "psnr": lambda a: mean(a.psnr.each),
    "ssim": lambda a: mean(a.ssim.each, most=1.0),
    "psnr_drop": lambda a: mean(drops(a.psnr_reference, a.psnr)),
    "ssim_drop": lambda a: mean(drops(a.ssim_reference, a.ssim)),
    "psnr_vs_fp32": lambda a: mean(a.psnr_vs_fp32.each),
    "ssim_vs_fp32": lambda a: mean(a.ssim_vs_fp32.each, most=1.0),
    "token_agreement": lambda a: share(a.sums["equal"], a.sums["tokens"]),
    "latent_sqnr_db": lambda a: sqnr(a.sums["latent_signal"], a.sums["latent_noise"]),
    "decoder_sqnr_db": lambda a: sqnr(a.sums["decoder_signal"], a.sums["decoder_noise"]),
    **{name: pair_of(name, "original") for name in PAIR_NAMES},
    **{f"{name}_vs_fp32": pair_of(name, "vs_fp32") for name in PAIR_NAMES},
}
LOGITS: dict[str, Callable[[LogitsAccuracy], Sampled]] = {
    "kl": lambda a: ratio(a.sums["divergence"], a.sums["positions"], least=0.0),
    "top1": lambda a: share(a.sums["first"], a.sums["positions"]),
    "top5": lambda a: share(a.sums["shared"], a.sums["likeliest"]),
    "logits_sqnr_db": lambda a: sqnr(a.sums["signal"], a.sums["noise"]),
    "cross_entropy": lambda a: ratio(a.sums["loss"], a.sums["tokens"], least=0.0),
    "cross_entropy_rise": lambda a: ratio(
        [b - c for b, c in zip(a.sums["loss"], a.sums["loss_fp32"], strict=True)],
        a.sums["tokens"],
    ),
    "perplexity": lambda a: Sampled(
        np.array([a.sums["loss"], a.sums["tokens"]]), lambda c: np.exp(over(c)), least=1.0
    ),
}
PICTURES: dict[str, Callable[[GeneratedImageAccuracy], Sampled]] = {
    "token_agreement": lambda a: share(a.sums["equal"], a.sums["tokens"]),
    "identical": lambda a: share(
        [float(at is None) for at in a.first_difference], [1.0] * len(a.first_difference)
    ),
    "first_difference": lambda a: median(
        [a.length if at is None else at for at in a.first_difference], noun="images"
    ),
    "psnr_vs_fp32": lambda a: mean(a.psnr_vs_fp32.each),
    "ssim_vs_fp32": lambda a: mean(a.ssim_vs_fp32.each if a.ssim_vs_fp32 else (), most=1.0),
    "latent_sqnr_db": lambda a: sqnr(a.sums["latent_signal"], a.sums["latent_noise"]),
    "decoder_psnr": lambda a: mean(a.decoder_psnr.each if a.decoder_psnr else ()),
    "ms_ssim_vs_fp32": lambda a: pair_mean("ms_ssim", a.pairs["ms_ssim"]),
    "lpips_vs_fp32": lambda a: pair_mean("lpips", a.pairs["lpips"]),
    "dists_vs_fp32": lambda a: pair_mean("dists", a.pairs["dists"]),
}
OUTPUTS: dict[str, tuple[tuple[str, ...], Callable[[Floats], Floats], float]] = {
    "output_sqnr_db": (("signal", "noise"), decibels_of, np.inf),
    "output_cosine": (("product", "signal", "own"), lambda c: cosine_of(c), 1.0),
    "output_equal": (("equal", "values"), over, 1.0),
}
# The outputs of a MAR's two graphs, by the metric that is of one alone.
ONE_OUTPUT = {"condition_sqnr_db": "pass/condition", "noise_sqnr_db": "denoise/noise"}


def drops(reference: Summary, own: Summary) -> list[float | None]:
    """Return FP32 less candidate by image; None where one of the two alone is without error."""
    return [
        0.0 if a is None is b else None if a is None or b is None else a - b
        for a, b in zip(reference.each, own.each, strict=True)
    ]


def cosine_of(columns: Floats) -> Floats:
    """Return the cosine of two vectors, of their product and both sums of squares."""
    product, signal, own = columns.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.minimum(1.0, product / np.sqrt(signal * own))
    return found


def worst_output(
    rows: Sequence[OutputAccuracy],
    names: tuple[str, ...],
    figure: Callable[[Floats], Floats],
    most: float,
) -> Sampled | str:
    """Return the least figure of all outputs that have these columns."""
    return worst_of([row.sums for row in rows], names, figure, most)


def worst_of(
    rows: Iterable[Sums],
    names: tuple[str, ...],
    figure: Callable[[Floats], Floats],
    most: float = np.inf,
) -> Sampled | str:
    """Return the least figure of all that have the columns it is made of."""
    able = [row for row in rows if set(names) <= set(row)]
    if not able:
        return NOT_KEPT
    width = len(names)
    columns = np.array([row[name] for row in able for name in names], np.float64)

    def worst(columns: Floats) -> Floats:
        parts = (columns[at : at + width] for at in range(0, len(columns), width))
        found: Floats = np.min([figure(part) for part in parts], axis=0)
        return found

    return Sampled(columns, worst, most=most)


def worst_site(report: Report) -> Sampled | str:
    """Return the SQNR of the worst site, which the Q/DQ graphs alone have."""
    found = [made.worst_sites for made in report.generation.values()]
    found += [made.worst_sites for made in report.accuracy.values()]
    rows = [sums for sites in found for sums in sites.values()]
    return worst_of(rows, ("signal", "noise"), decibels_of)


def sampled(report: Report, metric: str) -> Sampled | str:
    """Return what a metric's samples are, by the name that gates read; else why it has none."""
    name = plain(metric)
    if name in WITHOUT_INTERVAL:
        return WITHOUT_INTERVAL[name]
    if name in TIMED:
        return speed_sampled(report, metric)
    if name == "site_sqnr_db":
        return worst_site(report)
    candidate = metric.rpartition(".")[0] or report.headline
    try:
        return _of_candidate(report, str(candidate), name)
    except KeyError:
        return NOT_KEPT


def _of_candidate(report: Report, candidate: str, name: str) -> Sampled | str:
    made, accuracy = report.generation.get(candidate), report.accuracy.get(candidate)
    if accuracy is not None and name in TOKENIZER:
        return TOKENIZER[name](accuracy)
    if made is not None and made.logits is not None and name in LOGITS:
        return LOGITS[name](made.logits)
    if made is not None and made.pictures is not None and name in PICTURES:
        return PICTURES[name](made.pictures)
    if made is not None and name in ONE_OUTPUT:
        rows = [row for row in made.outputs if row.output == ONE_OUTPUT[name]]
        return worst_output(rows, *OUTPUTS["output_sqnr_db"])
    if candidate in report.outputs and name in OUTPUTS:
        return worst_output(report.outputs[candidate], *OUTPUTS[name])
    return "nothing says what its samples are"
