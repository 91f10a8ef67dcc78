"""Explain in sentences how a report's numbers were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...engines.facts import EngineRow
from ...graph.sites import NO_WEIGHT
from ...quantize.facts import SiteRow
from ...runtime.sessions.placement import ON_CPU
from ..formats import DB
from .calibration import calibration_notes, ranges
from .cells import joined
from .schema import SYNTHETIC, Report
from .spread import below_qdq

OF_IMAGES = (
    "PSNR and SSIM are of 8-bit images, clamped; SSIM with a Gaussian window of sigma 1.5, "
    "mean over channels. Means are over images; an infinite PSNR (identical images) is "
    "left out of the mean."
)
OF_ENCODER_AND_DECODER = (
    "Latent SQNR compares encoders before the quantizer. Decoder SQNR feeds both decoders "
    "the FP32 tokens and compares before clamping. Both add up energy over all images."
)
OF_OUTPUTS = (
    "SQNR is the energy of an FP32 output over that of its error, both added up over all samples; "
    "each graph is fed what the quantized graph before it made."
)
OF_LOGITS = (
    "Logits are those of all positions, each graph given the same tokens, in rows with the class "
    "and, where the model is guided, in rows without. KL is that of the candidate from FP32. The "
    "share of the five likeliest is that of FP32's five that are among the candidate's. "
    "Cross-entropy and perplexity are of rows with the class."
)
OF_TRAJECTORIES = (
    "Passes are given the tokens that FP32 knew at some steps of its own trajectory, the denoiser "
    "FP32's noisy tokens at some times behind each, and what the candidate's own pass tells of "
    "them. Rows with and without the class count alike, before guidance."
)
OF_GENERATORS = (
    "Images of the same seed draw with the same random numbers, one stream an image.",
    "Output SQNR of a site is measured with all quantized before it, in the Q/DQ graph.",
)
INTERVALS = (
    "Intervals are of 95 %, over the samples drawn again with a fixed seed (bootstrap, BCa); of "
    "fewer than 8 samples by Student's t; of shares exact, for as many trials as images whose "
    "tokens go wrong together are worth. The worst of some samples has none."
)
SHIFTED = (
    "Inputs called shifted have a constant subtracted before they are rounded, so that their range "
    "lies round 0; where channels are shifted, each its own, the middle of its calibrated range."
)
ATTENTION_GRIDS = ("FP8", "INT")  # the beginnings of their formats
NO_KERNELS = "No engine was built that shows its kernels."


def report_notes(report: Report) -> tuple[str, ...]:
    """Return the sentences on what the numbers are, on which machine and data."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    flags = ", ".join(report.cpu.flags) or "none of those looked for"
    notes = [
        *_how(report),
        (
            "The Q/DQ graph runs in a session without graph optimizations; the engine is what is "
            "shipped, as executed. Gates and the numbers on top read the engine where there is one."
        ),
        (
            "Latency: FP32 and engine alternate in one process; the speed is the ratio of both "
            "medians, and inconclusive if its interval includes 1 or rounds are fewer than 8."
        ),
        INTERVALS,
        *(
            (
                "A drop is the mean over images of FP32's figure less the candidate's for the same "
                "image, and inconclusive if its interval includes 0.",
            )
            if report.accuracy
            else ()
        ),
        "A speed is shown only for an engine that was executed on this machine.",
        *_where(report),
        *([f"{gap[0].upper()}{gap[1:]}."] if (gap := engine_gap(report)) else []),
        f"CPU: {report.cpu.model}; relevant flags: {flags}.",
        f"Versions: {versions or 'not recorded'}.",
        *_what(report),
    ]
    if report.calibration and SYNTHETIC not in report.data.calibration:
        notes += calibration_notes(report.calibration, noun(report))
    if any("shifted" in site.activation for site in report.sites):
        notes.append(SHIFTED)
    return (*notes, *attention_notes(report.sites, report.engines))


def engine_gap(report: Report) -> str:
    """Return by how much the engine is below its Q/DQ graph, why and what to do; "" if it is not.

    Of all engines ONNX Runtime's alone, which rounds outputs, runs on the CPU by no other name.
    """
    gap = below_qdq(report)
    if gap is None:
        return ""
    text = f"the engine is {DB(gap)} below its Q/DQ graph on the same {noun(report)}: "
    if ON_CPU.text in report.ran.values():
        more = ", or on larger crops" if report.accuracy else " like those of use"
        return (
            f"{text}it also rounds what convolutions return to the calibrated ranges; "
            f"calibrate on more samples{more}"
        )
    return f"{text}try another --backend, and report it with the output of `arvg-trt doctor`"


def attention_notes(sites: Sequence[SiteRow], engines: Sequence[EngineRow]) -> Iterator[str]:
    """Yield what quantized attention products cost, in accuracy and in the kernels of engines."""
    kernels = attention_kernels(engines) or NO_KERNELS
    for grid in ATTENTION_GRIDS:
        rows = [s for s in sites if s.weight == NO_WEIGHT and s.activation.startswith(grid)]
        measured = [s for s in rows if s.activation_sqnr_db is not None]
        if measured:
            worst = min(measured, key=lambda s: s.activation_sqnr_db or 0.0)
            yield (
                f"Attention products: {len(rows)} with operands in {worst.activation}, rounded at "
                f"{DB(worst.activation_sqnr_db)} or better ({worst.name}). {kernels}"
            )


def attention_kernels(engines: Sequence[EngineRow]) -> str:
    """Return how engines run attention, as their layer lists show; empty without one."""
    seen = {
        f"{row.graph} for {row.target}": (proof.attentions, len(proof.split_attentions))
        for row in engines
        if (proof := row.proof) is not None and proof.attentions
    }
    return " ".join(
        f"In {where} {count - split} of {count} attentions are one kernel"
        + (", the others two products with the softmax between them." if split else ".")
        for where, (count, split) in seen.items()
    )


def _how(report: Report) -> tuple[str, ...]:
    """Return the sentences that explain the numbers of this kind of model."""
    if report.generation:
        found = report.generation.values()
        forced = OF_LOGITS if any(a.logits for a in found) else OF_TRAJECTORIES
        return (forced, *OF_GENERATORS)
    return (OF_OUTPUTS,) if report.outputs else (OF_IMAGES, OF_ENCODER_AND_DECODER)


def _where(report: Report) -> Iterator[str]:
    """Yield which provider executed an engine, and what ran on the CPU instead of the GPU."""
    for engine, place in report.ran.items():
        others = "" if place == ON_CPU.text else "; all else ran on the CPU, but FP32 where timed"
        yield f"engines/{engine} ran on {place}{others}."
    for text in report.fallbacks:
        yield f"On the CPU instead of the GPU: {text}."


def _what(report: Report) -> tuple[str, ...]:
    """Return the sentences that name what was measured; generated images have a table."""
    data = report.data
    notes = []
    if data.pictures:
        drawn = ", ".join(f"{name} {value:g}" for name, value in data.sampling.items())
        notes.append(f"Images: {len(data.pictures)}, made with {drawn}.")
        classes = set(data.classes)
        seen = set(report.calibration.classes) if report.calibration else set()
        if classes and seen:
            notes.append(
                f"They are of {len(classes)} classes, {len(classes - seen)} of which calibration "
                f"has not seen: {ranges(classes)}."
            )
    if data.validation != data.pictures:
        notes.append(f"Validation {noun(report)}: {joined(data.validation, noun(report))}.")
    return tuple(notes)


def noun(report: Report) -> str:
    """Return the word for what a model of this kind is measured on."""
    return "samples" if report.outputs else "images"
