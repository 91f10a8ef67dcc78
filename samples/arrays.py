"""Feeds of a user's own graphs: arrays of a `.npz`, images for one input, or noise.

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

from ..errors import CalibrationError, bounded
from ..runtime.images import to_model
from ..workspace.files import sha256_file
from ..workspace.manifest import Manifest
from .base import Progress, SampleSource, reported, require_enough
from .crops import Crops
from .files import Array
from .images import ImageSource, open_source
from .inputs import (
    MOST_INPUTS,
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
class ArraySamples(SampleSource):
    """Arrays by input, images for the input that has none, or `noise` in all of them.

    `all_names` are those of all samples, `part` the numbers of those that are used. Of images
    crops are taken: random ones by `seed`, or without a seed the centres.
    """

    all_names: tuple[str, ...]
    part: range
    arrays: Mapping[str, Array]
    inputs: tuple[GraphInput, ...]
    file: Path | None = None
    images: ImageSource | None = None
    image_size: int = 0
    seed: int | None = None
    noise: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.noise else self.sample_names

    @property
    def digests(self) -> Mapping[str, str]:
        arrays = {} if self.file is None else {self.file.name: sha256_file(self.file)}
        return arrays | ({} if self.images is None else self.images.digests)

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.images.skipped if self.images else ()

    @property
    def synthetic(self) -> bool:
        return self.noise

    @property
    def count(self) -> int:
        return len(self.part)

    @property
    def sample_names(self) -> tuple[str, ...]:
        return self.all_names[self.part.start : self.part.stop]

    def samples(self, progress: Progress) -> Iterator[dict[str, Array]]:
        yield from reported(self.feeds(), self.count, progress)

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Yield the arrays of one sample after the other."""
        keys = [(needed, key_of(self.arrays, needed)) for needed in self.inputs]
        images = self.image_feeds()
        for k in self.part:
            sample = {key: n.sample(self.arrays[key], k) for n, key in keys if key is not None}
            if self.images is not None:
                sample[image_input(self.inputs, self.arrays).name] = next(images)
            yield sample

    def image_feeds(self) -> Iterator[NDArray[np.float32]]:
        """Yield the crops as they are fed, in [-1, 1]."""
        if self.images is not None:
            crops = Crops(self.images, self.image_size, self.part, self.seed)
            yield from (to_model(crop) for crop in crops.crops())


def open_arrays(
    exported: Manifest,
    *,
    feeds: str | None,
    images: str | None,
    size: int,
    count: int | None,
    seed: int | None,
    most: int | None = None,
) -> ArraySamples:
    """Open a file of arrays, images, or both together: the first `count` samples.

    Without `count` all there are are taken, or the first `most`.

    `seed` takes random crops of images.

    Raises:
        CalibrationError: nothing given, an input that nothing feeds, arrays of another type or
            shape, NaN, too few samples.
    """
    inputs = needed_inputs(exported)
    total = most if count is None else count
    arrays: dict[str, Array] = {} if feeds is None else read_arrays(Path(feeds))
    source = None if images is None else open_source(images, size=size, most=total)
    if feeds is None and source is None:
        unfed = bounded([needed.text for needed in inputs], "inputs", MOST_INPUTS, "; ")
        raise CalibrationError(
            f"nothing feeds {unfed}", do="give --feeds FILE.npz, or --images DIR for an image"
        )
    where = feeds or images or ""
    check_names(arrays, inputs, where)
    require_fed(inputs, arrays, where, with_images=source is not None)
    held = check_arrays(arrays, inputs, where)
    if source is not None:
        # Crops are drawn without end; the centre of an image is taken once.
        pictures = len(source.files) if seed is None else total or len(source.files)
        held = pictures if held is None else min(held, pictures)
    assert held is not None
    require_enough(held, count, where)
    total = held if total is None else min(held, total)
    return ArraySamples(
        all_names=sample_names(feeds, source, total),
        part=range(total),
        arrays=arrays,
        inputs=inputs,
        file=None if feeds is None else Path(feeds),
        images=source,
        image_size=size,
        seed=seed,
    )


def sample_names(feeds: str | None, source: ImageSource | None, count: int) -> tuple[str, ...]:
    """Return `FILE:K` for a file of arrays, else the names of the images in turn."""
    if feeds is not None:
        return tuple(f"{Path(feeds).stem}:{k}" for k in range(count))
    assert source is not None
    return tuple(source.names[k % len(source.names)] for k in range(count))


def noise_arrays(exported: Manifest, *, count: int, size: int, seed: int) -> ArraySamples:
    """Draw standard normal floats (images: uniform in [-1, 1]), zeros and ones for integers."""
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
    return ArraySamples(names, range(count), arrays, inputs, noise=True)
