"""Measure image quality beyond PSNR and SSIM: MS-SSIM, LPIPS, DISTS, codebook use and rFID.

Reconstructions are compared with the originals and with FP32's; generated images with FP32's of the
same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ...recipe.validate import ValidateOptions
from ..metrics.codebook import CodebookCounts, CodebookUse
from ..metrics.frechet import gaussian_distance
from ..metrics.moments import Moments
from ..metrics.ms_ssim import ms_ssim
from .open import POOL, FeatureNetwork, PairNetwork, open_feature_network, open_pair_network

Image = NDArray[np.uint8]  # [H, W, 3]
# A distance or likeness of two images; None where they are too small for it.
Pair = Callable[[Image, Image], float | None]
PAIR_NAMES = ("ms_ssim", "lpips", "dists")


class PerImage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one finite number per image, and their mean."""

    mean: float
    each: tuple[float, ...]

    @classmethod
    def of(cls, name: str, values: Sequence[float | None]) -> PerImage | None:
        """Return the values; None where an image had none.

        Raises:
            AccuracyError: a value is not finite.
        """
        found = [value for value in values if value is not None]
        if not all(map(math.isfinite, found)):
            raise AccuracyError(f"{name} of an image is not finite", do="look at the images")
        if not found or len(found) < len(values):
            return None
        return cls(mean=math.fsum(found) / len(found), each=tuple(found))


class PairQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one measure of pairs: reconstructions to originals, the same of FP32, and to FP32's."""

    original: PerImage
    reference: PerImage
    vs_fp32: PerImage


class RFid(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the Frechet distance of originals and reconstructions, and FP32's, in `features`.

    With no more ``images`` than the ``width`` of the features it is biased upward.
    """

    features: str
    width: int
    images: int
    value: float
    reference: float


class ReconstructionQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was measured of one quantized tokenizer; the rest is empty or None."""

    pairs: dict[str, PairQuality] = {}
    codebook: CodebookUse | None = None
    codebook_reference: CodebookUse | None = None
    rfid: RFid | None = None


class HasQuality(Protocol):
    """Stand for the accuracy of a tokenizer, whose quality is a field of it."""

    @property
    def quality(self) -> ReconstructionQuality: ...


def pair_value(name: str, side: str) -> Callable[[HasQuality], float | None]:
    def read(accuracy: HasQuality) -> float | None:
        found = accuracy.quality.pairs.get(name)
        return None if found is None else float(getattr(found, side).mean)

    return read


def perplexity_of(accuracy: HasQuality) -> float | None:
    codebook = accuracy.quality.codebook
    return None if codebook is None else codebook.perplexity


def rfid_of(accuracy: HasQuality) -> float | None:
    rfid = accuracy.quality.rfid
    return None if rfid is None else rfid.value


def rfid_rise_of(accuracy: HasQuality) -> float | None:
    rfid = accuracy.quality.rfid
    return None if rfid is None else rfid.value - rfid.reference


# By the names that gates read.
QUALITY_METRICS: dict[str, Callable[[HasQuality], float | None]] = {
    **{name: pair_value(name, "original") for name in PAIR_NAMES},
    **{f"{name}_vs_fp32": pair_value(name, "vs_fp32") for name in PAIR_NAMES},
    "codebook_perplexity": perplexity_of,
    "rfid": rfid_of,
    "rfid_rise": rfid_rise_of,
}


def open_pairs(options: ValidateOptions, size: int) -> dict[str, Pair]:
    """Return the measures of pairs of images of a size: MS-SSIM, and those with a network.

    Raises:
        RecipeError: a network that cannot be used.
    """
    found: dict[str, Pair] = {"ms_ssim": ms_ssim}
    for name, path in (("lpips", options.lpips), ("dists", options.dists)):
        if path is not None:
            network = open_pair_network(Path(path), f"--{name}", size, options.threads)
            found[name] = single(network)
    return found


def single(network: PairNetwork) -> Pair:
    def distance(a: Image, b: Image) -> float:
        return float(network.distance(a[None], b[None])[0])

    return distance


@dataclass(slots=True)
class _Side:
    """Collect numbers of the reconstructions of one tokenizer, never the images."""

    counts: CodebookCounts | None
    original: dict[str, list[float | None]] = field(default_factory=dict)
    vs_fp32: dict[str, list[float | None]] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)


class QualityMeter:
    """Measure reconstructions while images pass by, of FP32 and of each candidate."""

    def __init__(
        self,
        candidates: Sequence[str],
        pairs: Mapping[str, Pair],
        network: FeatureNetwork | None,
        codebook_size: int | None,
    ) -> None:
        self._pairs, self._network = pairs, network
        size = codebook_size
        self._originals = Moments()
        self._fp32, *others = (
            _Side(None if size is None else CodebookCounts(size)) for _ in (None, *candidates)
        )
        self._others = dict(zip(candidates, others, strict=True))

    @classmethod
    def open(
        cls,
        candidates: Sequence[str],
        options: ValidateOptions,
        codebook_size: int | None,
    ) -> QualityMeter:
        """Open the networks of the options.

        Raises:
            RecipeError: a network that cannot be used.
        """
        network = None
        if options.features is not None:
            network = open_feature_network(Path(options.features), options.size, options.threads)
        return cls(candidates, open_pairs(options, options.size), network, codebook_size)

    def add(
        self,
        original: Image,
        fp32: tuple[Image, NDArray[Any] | None],
        own: Mapping[str, tuple[Image, NDArray[Any] | None]],
    ) -> None:
        """Add an image, and each tokenizer's reconstruction of it and tokens."""
        if self._network is not None:
            self._originals.add(self._network.extract(original[None])[POOL])
        for side, (image, tokens) in (
            (self._fp32, fp32),
            *((self._others[name], found) for name, found in own.items()),
        ):
            for name, measure in self._pairs.items():
                side.original.setdefault(name, []).append(measure(original, image))
                if side is not self._fp32:
                    side.vs_fp32.setdefault(name, []).append(measure(fp32[0], image))
            if tokens is not None and side.counts is not None:
                side.counts.add(tokens)
            if self._network is not None:
                side.moments.add(self._network.extract(image[None])[POOL])

    def results(self) -> dict[str, ReconstructionQuality]:
        """Return the quality by candidate."""
        return {name: self._result(side) for name, side in self._others.items()}

    def _result(self, side: _Side) -> ReconstructionQuality:
        pairs: dict[str, PairQuality] = {}
        for name, values in side.original.items():
            lists = (values, self._fp32.original[name], side.vs_fp32[name])
            found = [PerImage.of(name, each) for each in lists]
            if found[0] is not None and found[1] is not None and found[2] is not None:
                pairs[name] = PairQuality(original=found[0], reference=found[1], vs_fp32=found[2])
        codebooks = [s.counts.result() if s.counts else None for s in (side, self._fp32)]
        return ReconstructionQuality(
            pairs=pairs,
            codebook=codebooks[0],
            codebook_reference=codebooks[1],
            rfid=self._rfid(side),
        )

    def _rfid(self, side: _Side) -> RFid | None:
        """Return rFID; None without a network, and of a single image, which has no covariance."""
        if self._network is None or self._originals.count < 2:
            return None
        originals = self._originals.result()
        value, reference = (
            gaussian_distance(originals, s.moments.result()) for s in (side, self._fp32)
        )
        return RFid(
            features=self._network.title,
            width=len(originals.mean),
            images=self._originals.count,
            value=value,
            reference=reference,
        )
