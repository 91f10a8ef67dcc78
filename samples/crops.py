"""Inputs of an image tokenizer: square crops of images, or noise that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..runtime.images import Uint8Image, center_crop, enlarge_to
from .base import Progress, SampleSource, reported
from .images import ImageSamples, ImageSource


@dataclass(frozen=True, slots=True)
class Crops(ImageSamples):
    """Crops `part` of images, in turn: random ones by `seed`, or without a seed the centres."""

    images: ImageSource
    size: int
    part: range
    seed: int | None = None

    @property
    def sample_names(self) -> tuple[str, ...]:
        names = self.names
        return tuple(names[k % len(names)] for k in self.part)

    def samples(self, progress: Progress) -> Iterator[Uint8Image]:
        yield from reported(self.crops(), self.count, progress)

    def crops(self) -> Iterator[Uint8Image]:
        """Yield the crops, uint8 [size, size, 3]."""
        if self.seed is None:
            return (center_crop(self.images.load(k), self.size) for k in self.part)
        return random_crops(self.images, self.part.stop, self.size, self.seed, self.part.start)


@dataclass(frozen=True, slots=True)
class Noise(SampleSource):
    """Uniform noise in place of crops; it has no names."""

    size: int
    part: range
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def digests(self) -> Mapping[str, str]:
        return {}

    @property
    def synthetic(self) -> bool:
        return True

    @property
    def count(self) -> int:
        return len(self.part)

    def samples(self, progress: Progress) -> Iterator[Uint8Image]:
        noise = noise_images(self.part.stop, self.size, self.seed, self.part.start)
        yield from reported(noise, self.count, progress)


def random_crops(
    source: ImageSource, count: int, size: int, seed: int, first: int = 0
) -> Iterator[Uint8Image]:
    """Yield square crops `first` to `count` - 1, image by image in turn.

    Crop k depends on `seed` and k alone: larger counts extend smaller ones. Images smaller than
    `size` are enlarged first.
    """
    for k in range(first, count):
        image = enlarge_to(source.load(k % len(source.files)), size)
        rng = np.random.default_rng([seed, k])
        top = int(rng.integers(0, image.shape[0] - size + 1))
        left = int(rng.integers(0, image.shape[1] - size + 1))
        yield image[top : top + size, left : left + size]


def noise_images(count: int, size: int, seed: int, first: int = 0) -> Iterator[Uint8Image]:
    """Yield uniform noise, only for `--synthetic`, which stamps every report made from it."""
    for k in range(first, count):
        rng = np.random.default_rng([seed, k])
        yield rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
