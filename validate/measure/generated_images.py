"""Compare images that a quantized generator and FP32 make of the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from ...numerics.noise import SignalAndNoise
from ...runtime.generator import Generated
from ...runtime.images import from_model
from ...runtime.sessions.session import Session
from ...samples.decoded import MakeFeeds
from ..metrics.frechet import frechet_distance
from ..metrics.image import SSIM_WINDOW, none_if_infinite, psnr, ssim
from ..metrics.summary import Summary
from ..metrics.sums import SampleSums, energies
from ..metrics.worst import Worst, shown_candidate
from ..quality.reconstruction import Pair, PerImage
from .generator_accuracy import FrechetRow, GeneratedImageAccuracy
from .tokenizer_accuracy import ComparedImage

Images = NDArray[np.uint8]
Batch = tuple[Images, NDArray[Any]]  # uint8 [B, H, W, 3]; tokens int [B, L], or latents of floats


@dataclass(frozen=True, slots=True)
class Features:
    """Define a network whose features of images are compared: uint8 [B, H, W, 3] -> [B, D].

    `key` is the metric's name and `title` describes the network.
    """

    key: str
    title: str
    extract: Callable[[Images], NDArray[Any]]


Decode = Callable[[NDArray[Any]], Images]  # tokens or latents of a batch -> its images


class _Accumulator:
    """Collect numbers and features of one candidate's images, never the images."""

    def __init__(
        self, networks: Sequence[Features], pairs: Mapping[str, Pair] | None = None
    ) -> None:
        self.measures = pairs or {}
        self.pairs: dict[str, list[float | None]] = {name: [] for name in self.measures}
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.first: list[int | None] = []
        self.equal = 0
        self.tokens = 0
        self.length = 0
        self.latent = SignalAndNoise()
        self.decoded: list[float] = []
        self.features: dict[str, list[NDArray[Any]]] = {n.key: [] for n in networks}
        self.sums = SampleSums()

    def add(self, fp32: Batch, own: Batch, names: Sequence[str]) -> None:
        """Add a batch of FP32's images and the candidate's, of the images `names`."""
        for reference, image in zip(fp32[0], own[0], strict=True):
            self.psnr.append(psnr(reference, image))
            if min(image.shape[:2]) >= SSIM_WINDOW:
                self.ssim.append(ssim(reference, image))
            for name, measure in self.measures.items():
                self.pairs[name].append(measure(reference, image))
        wanted, actual = fp32[1], own[1]
        if not np.issubdtype(wanted.dtype, np.integer):
            self.latent.add(wanted, actual)
            for name, exact, value in zip(names, wanted, actual, strict=True):
                self.sums.add(name, **energies(exact, value, "latent_"))
            return
        same = wanted == actual
        self.equal += int(np.count_nonzero(same))
        self.tokens += same.size
        self.length = same.shape[1]
        self.first += [None if row.all() else int(row.argmin()) for row in same]
        for name, row in zip(names, same, strict=True):
            self.sums.add(name, equal=int(np.count_nonzero(row)), tokens=row.size)

    def result(self, frechet: tuple[FrechetRow, ...]) -> GeneratedImageAccuracy:
        discrete = self.tokens > 0
        found = {name: PerImage.of(name, values) for name, values in self.pairs.items()}
        return GeneratedImageAccuracy(
            token_agreement=self.equal / self.tokens if discrete else None,
            first_difference=tuple(self.first),
            length=self.length,
            latent_sqnr_db=None if discrete else none_if_infinite(self.latent.decibels()),
            psnr_vs_fp32=Summary.of(self.psnr),
            ssim_vs_fp32=Summary.of(self.ssim) if self.ssim else None,
            decoder_psnr=Summary.of(self.decoded) if self.decoded else None,
            frechet=frechet,
            sums=self.sums.columns(),
            pairs={name: row for name, row in found.items() if row is not None},
        )


def measure_generated_images(
    names: Sequence[str],
    fp32: Iterable[Batch],
    candidates: Mapping[str, Iterable[Batch]],
    *,
    networks: Sequence[Features],
    others: Iterable[Images],
    keep: int,
    progress: Callable[[int], None],
    pairs: Mapping[str, Pair] | None = None,
    decoders: Mapping[str, Decode] | None = None,
) -> tuple[dict[str, GeneratedImageAccuracy], list[ComparedImage]]:
    """Compare batches of images with FP32's, one batch in memory at a time.

    Candidates come in the same batches as FP32; their `decoders` also get FP32's tokens. `names`
    are those of the images. `others` are as many FP32 images of other seeds, and are read only if
    there are `networks`. The `keep` images that the headline candidate brings farthest from FP32
    by PSNR are returned, the worst first. `pairs` are further measures of an image and FP32's.
    `progress` is called with the number of images done.

    Raises:
        AccuracyError: images or tokens of another shape than FP32's, features that are not finite.
    """
    accumulators = {name: _Accumulator(networks, pairs) for name in candidates}
    reference = _Accumulator(networks)
    shown_images = Worst[ComparedImage](keep)
    watched = shown_candidate(candidates)
    done = 0
    for wanted, *made in zip(fp32, *candidates.values(), strict=True):
        collect(reference, networks, wanted[0])
        for name, own in zip(candidates, made, strict=True):
            require_alike(name, names[done], wanted, own)
            accumulators[name].add(wanted, own, names[done : done + len(wanted[0])])
            if decoders and name in decoders:
                decoded = decoders[name](wanted[1])
                accumulators[name].decoded += map(psnr, wanted[0], decoded)
            collect(accumulators[name], networks, own[0])
        for k, image in enumerate(wanted[0]):
            shown = {name: own[0][k] for name, own in zip(candidates, made, strict=True)}
            score = accumulators[watched].psnr[done + k] if watched else math.inf
            shown_images.add(score, ComparedImage(names[done + k], None, image, shown))
        done += len(wanted[0])
        progress(done)
    floors: dict[str, float] = {}
    if networks and done > 1:
        chance = _Accumulator(networks)
        for images in others:
            collect(chance, networks, images)
        floors = {n.key: distance(reference, chance, n) for n in networks}
    rows = {
        name: tuple(
            FrechetRow(
                key=n.key,
                features=n.title,
                width=accumulator.features[n.key][0].shape[1],
                distance=distance(reference, accumulator, n),
                floor=floors[n.key],
            )
            for n in networks
            if n.key in floors
        )
        for name, accumulator in accumulators.items()
    }
    return {
        name: accumulator.result(rows[name]) for name, accumulator in accumulators.items()
    }, shown_images.items()


def collect(accumulator: _Accumulator, networks: Sequence[Features], images: Images) -> None:
    for network in networks:
        accumulator.features[network.key].append(network.extract(images))


def distance(a: _Accumulator, b: _Accumulator, network: Features) -> float:
    parts = (np.concatenate(accumulator.features[network.key]) for accumulator in (a, b))
    return frechet_distance(*parts)


def require_alike(candidate: str, name: str, fp32: Batch, own: Batch) -> None:
    shapes = [[list(part.shape) for part in batch] for batch in (own, fp32)]
    if shapes[0] != shapes[1]:
        raise AccuracyError(
            f"{candidate} made images and tokens {shapes[0]} where FP32 made {shapes[1]}",
            where=name,
            do="compare graphs of the same model",
        )


def decoded_images(feeds: MakeFeeds, decoder: Session, tokens: NDArray[Any]) -> Images:
    """Return the images uint8 [B, H, W, 3] of tokens [B, L] or latents [B, c, h, w]."""
    images = decoder.run(feeds(tokens))["image"][: len(tokens)].astype(np.float32)
    return np.stack([from_model(image[None]) for image in images])


def batches(made: Iterator[Generated]) -> Iterator[Batch]:
    """Yield the images and tokens of what a generator made."""
    for batch in made:
        yield batch.images, batch.tokens
