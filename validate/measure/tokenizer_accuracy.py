"""Measure how close quantized image tokenizers come to the original images and to FP32.

Decibels can be infinite (no error at all). JSON has no infinity, so structs hold None there; a
value is never replaced by a large number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ...numerics.noise import SignalAndNoise
from ..metrics.image import (
    SSIM_WINDOW,
    codebook_use,
    none_if_infinite,
    psnr,
    ssim,
    to_float,
    to_uint8,
)
from ..metrics.summary import Summary
from ..metrics.sums import SampleSums, energies
from ..metrics.worst import Worst, shown_candidate
from ..quality.reconstruction import QualityMeter, ReconstructionQuality


class Codec(Protocol):
    """Encode and decode images; arrays that a call returned stay valid after later calls."""

    def encode(
        self, image: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32] | None, NDArray[np.float32]]:
        """Return (indices [1, h, w], latent [1, C, h, w]) of an image [1, 3, H, W] in [-1, 1].

        Continuous tokenizers have None for indices.
        """
        ...

    def decode(
        self, tokens_or_latent: NDArray[np.int32] | NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the image [1, 3, H, W], not clamped, of indices or of a continuous latent."""
        ...


class CandidateAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Compare one quantized tokenizer with the originals and with FP32, on the same images.

    ``psnr``, ``ssim``: reconstruction against the original; ``*_reference``: the same of FP32;
    ``*_vs_fp32``: against the FP32 reconstruction; ``*_drop``: what quantization cost, FP32 minus
    candidate (``psnr_drop`` is None if only one of the two is lossless). ``token_agreement`` and
    ``codebook_use``: shares in [0, 1], None if the tokenizer has no tokens or no known codebook.
    ``latent_sqnr_db``: candidate latent against FP32 latent; ``decoder_sqnr_db``: candidate decoder
    fed the FP32 tokens against the FP32 decoder, before clamping; None stands for infinity.
    ``sites`` has, in graph order, the SQNR in dB of each convolution's output with all sites before
    it in its graph quantized (None for no error); it is empty for all but the Q/DQ graphs.
    ``worst_sites`` has, of the worst of them, ``signal`` and ``noise`` by image.
    ``sums`` has, by image, what it adds to the figures over all: ``equal`` of its ``tokens``, and
    the energies of both signals and errors; a report of version 1 has none.
    """

    psnr: Summary
    ssim: Summary
    psnr_reference: Summary
    ssim_reference: Summary
    psnr_vs_fp32: Summary
    ssim_vs_fp32: Summary
    psnr_drop: float | None
    ssim_drop: float
    token_agreement: float | None
    latent_sqnr_db: float | None
    decoder_sqnr_db: float | None
    codebook_use: float | None
    codebook_use_reference: float | None
    sites: dict[str, float | None] = {}
    worst_sites: dict[str, dict[str, tuple[float, ...]]] = {}
    sums: dict[str, tuple[float, ...]] = {}
    quality: ReconstructionQuality = ReconstructionQuality()


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """Hold an image and its reconstructions, [H, W, 3] uint8; generated ones lack an original."""

    name: str
    original: NDArray[np.uint8] | None
    reference: NDArray[np.uint8]
    candidates: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class _Graphs:
    """Check what a codec returns: finite, of the right shape, inside the codebook."""

    name: str
    codec: Codec
    codebook_size: int | None

    def _refuse(self, image: str, graph: str, what: str) -> AccuracyError:
        return AccuracyError(
            f"the {graph} of {self.name} gave {what}",
            where=image,
            do=f"look for overflow or a wrong scale in that {graph}; "
            "keep the suspect sites in high precision",
        )

    def _finite(self, image: str, graph: str, value: NDArray[np.float32]) -> None:
        bad = value.size - int(np.count_nonzero(np.isfinite(value)))
        if bad:
            raise self._refuse(image, graph, f"{bad} non-finite of {value.size} values")

    def encode(
        self, name: str, image: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32] | None, NDArray[np.float32]]:
        indices, latent = self.codec.encode(image)
        self._finite(name, "encoder", latent)
        if indices is not None and self.codebook_size is not None:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.codebook_size:
                raise self._refuse(
                    name,
                    "encoder",
                    f"indices from {low} to {high}, outside a codebook of {self.codebook_size}",
                )
        return indices, latent

    def decode(
        self,
        name: str,
        tokens: NDArray[np.int32] | NDArray[np.float32],
        shape: tuple[int, ...],
    ) -> NDArray[np.float32]:
        image = self.codec.decode(tokens)
        if image.shape != shape:
            raise self._refuse(name, "decoder", f"shape {image.shape} for an image of {shape}")
        self._finite(name, "decoder", image)
        return image


class _Accumulator:
    """Collect numbers of one candidate while images pass by, never the images."""

    def __init__(self) -> None:
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.psnr_vs_fp32: list[float] = []
        self.ssim_vs_fp32: list[float] = []
        self.latent = SignalAndNoise()
        self.decoder = SignalAndNoise()
        self.equal = 0
        self.tokens = 0
        self.used: set[int] = set()
        self.sums = SampleSums()

    def add_images(
        self, original: NDArray[np.uint8], fp32: NDArray[np.uint8], own: NDArray[np.uint8]
    ) -> None:
        self.psnr.append(psnr(original, own))
        self.ssim.append(ssim(original, own))
        self.psnr_vs_fp32.append(psnr(fp32, own))
        self.ssim_vs_fp32.append(ssim(fp32, own))

    def result(self, reference: _Accumulator, codebook_size: int | None) -> CandidateAccuracy:
        size = codebook_size if self.tokens else None
        # inf - inf is not a number; two lossless reconstructions differ by nothing
        drops = [0.0 if r == c else r - c for r, c in zip(reference.psnr, self.psnr, strict=True)]
        return CandidateAccuracy(
            psnr=Summary.of(self.psnr),
            ssim=Summary.of(self.ssim),
            psnr_reference=Summary.of(reference.psnr),
            ssim_reference=Summary.of(reference.ssim),
            psnr_vs_fp32=Summary.of(self.psnr_vs_fp32),
            ssim_vs_fp32=Summary.of(self.ssim_vs_fp32),
            psnr_drop=math.fsum(drops) / len(drops) if np.isfinite(drops).all() else None,
            ssim_drop=(math.fsum(reference.ssim) - math.fsum(self.ssim)) / len(self.ssim),
            token_agreement=self.equal / self.tokens if self.tokens else None,
            latent_sqnr_db=none_if_infinite(self.latent.decibels()),
            decoder_sqnr_db=none_if_infinite(self.decoder.decibels()),
            codebook_use=codebook_use(self.used, size) if size else None,
            codebook_use_reference=codebook_use(reference.used, size) if size else None,
            sums=self.sums.columns(),
        )


def _check_image(name: str, image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise AccuracyError(
            f"expected a uint8 image [H, W, 3], not {image.dtype} {list(image.shape)}", where=name
        )
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise AccuracyError(
            f"SSIM needs sides of at least {SSIM_WINDOW} pixels, not {list(image.shape[:2])}",
            where=name,
            do="validate with larger images",
        )


def _compare_tokens(
    image: str,
    graphs: _Graphs,
    accumulator: _Accumulator,
    fp32: NDArray[np.int32] | None,
    own: NDArray[np.int32] | None,
) -> None:
    if fp32 is None and own is None:
        return
    if fp32 is None or own is None or fp32.shape != own.shape:
        shapes = [None if t is None else list(t.shape) for t in (own, fp32)]
        raise AccuracyError(
            f"the encoder of {graphs.name} gave indices {shapes[0]}, FP32 gave {shapes[1]}",
            where=image,
            do="compare graphs of the same model and shape",
        )
    equal = int(np.count_nonzero(fp32 == own))
    accumulator.equal += equal
    accumulator.tokens += fp32.size
    accumulator.sums.add(image, equal=equal, tokens=fp32.size)
    accumulator.used.update(np.unique(own).tolist())


def measure(
    images: Iterable[tuple[str, NDArray[np.uint8]]],
    reference: Codec,
    candidates: Mapping[str, Codec],
    *,
    codebook_size: int | None,
    keep_images: int,
    progress: Callable[[int], None],
    meter: QualityMeter | None = None,
) -> tuple[dict[str, CandidateAccuracy], list[ComparedImage]]:
    """Run every image through FP32 and each candidate, one image in memory at a time.

    `images`: (name, [H, W, 3] uint8, sides >= 11 and of a size the codecs take); `codebook_size`:
    None if unknown or continuous; the `keep_images` images that the headline candidate brings
    farthest from FP32 by PSNR are returned with their reconstructions, the worst first; `progress`
    is told the number of images done; `meter` sees every image.

    Raises AccuracyError, naming image and graph, for non-finite values, indices outside the
    codebook and shapes that differ from the reference; and for no images at all.
    """
    fp32 = _Graphs("the FP32 reference", reference, codebook_size)
    others = {name: _Graphs(name, codec, codebook_size) for name, codec in candidates.items()}
    reference_accumulator = _Accumulator()
    accumulators = {name: _Accumulator() for name in others}
    pictures = Worst[ComparedImage](keep_images)
    watched = shown_candidate(candidates)
    for done, (name, original) in enumerate(images, start=1):
        _check_image(name, original)
        feed = to_float(original)
        tokens, latent = fp32.encode(name, feed)
        code = latent if tokens is None else tokens
        decoded = fp32.decode(name, code, feed.shape)
        fp32_image = to_uint8(decoded)
        reference_accumulator.psnr.append(psnr(original, fp32_image))
        reference_accumulator.ssim.append(ssim(original, fp32_image))
        if tokens is not None:
            reference_accumulator.used.update(np.unique(tokens).tolist())
        made: dict[str, tuple[NDArray[np.uint8], NDArray[np.int32] | None]] = {}
        for candidate, graphs in others.items():
            accumulator = accumulators[candidate]
            own_tokens, own_latent = graphs.encode(name, feed)
            _compare_tokens(name, graphs, accumulator, tokens, own_tokens)
            same_code = graphs.decode(name, code, feed.shape)
            accumulator.latent.add(latent, own_latent)
            accumulator.decoder.add(decoded, same_code)
            accumulator.sums.add(
                name,
                **energies(latent, own_latent, "latent_"),
                **energies(decoded, same_code, "decoder_"),
            )
            own_code = own_latent if own_tokens is None else own_tokens
            own = to_uint8(graphs.decode(name, own_code, feed.shape))
            accumulator.add_images(original, fp32_image, own)
            made[candidate] = own, own_tokens
        if meter is not None:
            meter.add(original, (fp32_image, tokens), made)
        shown = {candidate: found[0] for candidate, found in made.items()}
        score = accumulators[watched].psnr_vs_fp32[-1] if watched else math.inf
        pictures.add(score, ComparedImage(name, original, fp32_image, shown))
        progress(done)
    if not reference_accumulator.psnr:
        raise AccuracyError("there are no images to validate with", do="name a folder of images")
    results = {n: t.result(reference_accumulator, codebook_size) for n, t in accumulators.items()}
    return results, pictures.items()
