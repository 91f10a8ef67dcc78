"""Feeds of a user's own graphs: arrays of a `.npz`, images for one input, or noise that was asked
for.

The file has an array for every input that no earlier graph makes. Its samples lie along the first
axis, one row each, or as many as the graph fixes; for an input without a batch axis the array has
one axis more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..runtime.images import center_crop, to_model
from ..workspace.files import sha256_file
from ..workspace.manifest import Manifest
from .files import Array
from .images import ImageSource, open_source, random_crops
from .inputs import (
    GraphInput,
    check_arrays,
    check_names,
    image_input,
    key_of,
    needed_inputs,
    read_arrays,
    require_fed,
)

NOISE = "synthetic noise"
# What a dimension without a size gets in noise, the first axis apart.
NOISE_SIZE = 8


@dataclass(frozen=True, slots=True)
class CustomFeeds:
    """Arrays by sample and the names that reports call samples by."""

    names: tuple[str, ...]
    arrays: Mapping[str, Array]
    inputs: tuple[GraphInput, ...]
    digests: Mapping[str, str]
    images: ImageSource | None = None
    image_size: int = 0
    seed: int | None = None

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.images.skipped if self.images else ()

    def samples(self, part: range | None = None) -> Iterator[dict[str, Array]]:
        """One sample after the other, all or a range of them."""
        part = range(len(self.names)) if part is None else part
        pictures = self.pictures(part)
        for k in part:
            sample = {
                key: needed.sample(self.arrays[key], k)
                for needed, key in ((i, key_of(self.arrays, i)) for i in self.inputs)
                if key is not None
            }
            if self.images is not None:
                sample[image_input(self.inputs, self.arrays).name] = next(pictures)
            yield sample

    def pictures(self, part: range) -> Iterator[NDArray[np.float32]]:
        """Random crops in [-1, 1] to calibrate on; without a seed the centre of every image."""
        if self.images is None:
            return
        if self.seed is not None:
            for crop in random_crops(
                self.images, part.stop, self.image_size, self.seed, part.start
            ):
                yield to_model(crop)
            return
        for k in part:
            yield to_model(center_crop(self.images.load(k), self.image_size))


def open_feeds(
    exported: Manifest,
    *,
    feeds: str | None,
    images: str | None,
    size: int,
    count: int | None,
    seed: int | None,
) -> CustomFeeds:
    """Samples from a file of arrays, from images, or from both together.

    `count` samples, or all there are (None). `seed` takes random crops of images.

    Raises:
        CalibrationError: nothing given, an input that nothing feeds, arrays of another type or
            shape, NaN, too few samples.
    """
    inputs = needed_inputs(exported)
    arrays: dict[str, Array] = {} if feeds is None else read_arrays(Path(feeds))
    source = None if images is None else open_source(images, size=size, most=count)
    if feeds is None and source is None:
        wanted = "; ".join(needed.text for needed in inputs)
        raise CalibrationError(
            f"nothing feeds {wanted}", do="give --feeds FILE.npz, or --images DIR for an image"
        )
    where = feeds or images or ""
    check_names(arrays, inputs, where)
    require_fed(inputs, arrays, where, with_images=source is not None)
    held = check_arrays(arrays, inputs, where)
    if source is not None:
        # Crops are drawn without end; the centre of an image is taken once.
        pictures = len(source.files) if seed is None else count or len(source.files)
        held = pictures if held is None else min(held, pictures)
    assert held is not None
    if count is not None and held < count:
        raise CalibrationError(
            f"holds {held} samples, {count} were asked for",
            where=where,
            do=f"give more, or --samples {held}",
        )
    total = held if count is None else count
    digests = {} if feeds is None else {Path(feeds).name: sha256_file(Path(feeds))}
    if source is not None:
        digests |= {n: sha256_file(p) for n, p in zip(source.names, source.files, strict=True)}
    names = sample_names(feeds, source, total)
    return CustomFeeds(names, arrays, inputs, digests, source, size, seed)


def sample_names(feeds: str | None, source: ImageSource | None, count: int) -> tuple[str, ...]:
    """`FILE:K` of a file of arrays, else the names of the images in turn."""
    if feeds is not None:
        return tuple(f"{Path(feeds).stem}:{k}" for k in range(count))
    assert source is not None
    return tuple(source.names[k % len(source.names)] for k in range(count))


def synthetic_feeds(exported: Manifest, *, count: int, size: int, seed: int) -> CustomFeeds:
    """Standard normal floats (images: uniform in [-1, 1]), zeros and ones for integers."""
    inputs = needed_inputs(exported)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for needed in inputs:
        rows = count * needed.rows
        rest = [d if isinstance(d, int) else NOISE_SIZE for d in needed.shape[1:]]
        if needed.is_image:
            rest = [d if isinstance(d, int) else size for d in needed.shape[1:]]
            made = rng.uniform(-1, 1, (rows, *rest)).astype(needed.dtype)
        elif np.issubdtype(needed.dtype, np.floating):
            made = rng.standard_normal((rows, *rest)).astype(needed.dtype)
        else:
            made = rng.integers(0, 2, (rows, *rest)).astype(needed.dtype)
        arrays[f"{needed.graph}/{needed.name}"] = made
    names = tuple(f"{NOISE}:{k}" for k in range(count))
    return CustomFeeds(names, arrays, inputs, {})
