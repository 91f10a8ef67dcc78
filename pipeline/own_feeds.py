"""Feeds of a user's own graphs: arrays of a `.npz`, images for one input, or noise that was asked
for.

A sample holds one array for every input that no earlier graph makes, with a sample axis of length
1 in front; an input that has no such axis takes arrays of one axis more in the file.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Manifest, sha256_file
from ..errors import CalibrationError
from ..runtime.feeds import Array
from ..runtime.image_sources import ImageSource, open_source, random_crops
from ..runtime.images import center_crop, to_model

NOISE = "synthetic noise"
# What a dimension without a size gets in noise, the first axis apart.
NOISE_SIZE = 8


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input that has to be fed; a dimension of any size is a text or None."""

    graph: str
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def text(self) -> str:
        dims = ", ".join(str(d) if d is not None else "?" for d in self.shape)
        return f"{self.graph}/{self.name} {self.dtype} [{dims}]"

    @property
    def is_image(self) -> bool:
        """float32 [N, 3, H, W]."""
        return len(self.shape) == 4 and self.shape[1] == 3 and self.dtype == np.float32


@dataclass(frozen=True, slots=True)
class OwnFeeds:
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

    def samples(self) -> Iterator[dict[str, Array]]:
        """One sample after the other."""
        pictures = self.pictures()
        for k in range(len(self.names)):
            sample = {
                key: array[k] if array.ndim > len(needed.shape) else array[k : k + 1]
                for needed in self.inputs
                if (key := key_of(self.arrays, needed)) is not None
                for array in (self.arrays[key],)
            }
            if self.images is not None:
                sample[image_input(self.inputs, self.arrays).name] = next(pictures)
            yield sample

    def pictures(self) -> Iterator[NDArray[np.float32]]:
        """Random crops in [-1, 1] to calibrate on; without a seed the centre of every image."""
        if self.images is None:
            return
        if self.seed is not None:
            for crop in random_crops(self.images, len(self.names), self.image_size, self.seed):
                yield to_model(crop)
            return
        for k in range(len(self.names)):
            yield to_model(center_crop(self.images.load(k), self.image_size))


def is_own(exported: Manifest) -> bool:
    """Whether the export is of a user's own graphs."""
    return "graphs" in exported.results


def needed_inputs(exported: Manifest) -> tuple[GraphInput, ...]:
    """Inputs of the graphs, in the order that they run, that no earlier graph makes."""
    made: set[str] = set()
    needed = []
    for graph in exported.results["graphs"]:
        for value in graph["inputs"]:
            if value["name"] not in made:
                shape = tuple(value["shape"] or ())
                needed.append(
                    GraphInput(graph["name"], value["name"], np.dtype(value["dtype"]), shape)
                )
        made |= {value["name"] for value in graph["outputs"]}
    return tuple(needed)


def open_feeds(
    exported: Manifest,
    *,
    feeds: str | None,
    images: str | None,
    size: int,
    count: int | None,
    seed: int | None,
) -> OwnFeeds:
    """Samples from a file of arrays, from images, or from both together.

    `count` samples, or all there are (None). `seed` takes random crops of images.

    Raises:
        CalibrationError: nothing given, an input that nothing feeds, arrays of another type or
            shape, NaN, too few samples.
    """
    inputs = needed_inputs(exported)
    arrays: dict[str, Array] = {} if feeds is None else read_arrays(Path(feeds))
    source = None if images is None else open_source(images)
    if feeds is None and source is None:
        wanted = "; ".join(needed.text for needed in inputs)
        raise CalibrationError(
            f"nothing feeds {wanted}", do="give --feeds FILE.npz, or --images DIR for an image"
        )
    where = feeds or images or ""
    check_names(arrays, inputs, where)
    if source is not None:
        image_input(inputs, arrays)
        missing = []
    else:
        missing = [needed for needed in inputs if key_of(arrays, needed) is None]
    if missing:
        raise CalibrationError(
            f"has no array for {missing[0].text}",
            where=where,
            do=f"add it as {missing[0].name}, one sample along the first axis",
        )
    held = check_arrays(arrays, inputs, where)
    if source is not None:
        pictures = len(source.files) if count is None else count
        held = pictures if held is None else held
    assert held is not None
    total = held if count is None else count
    if held < total:
        raise CalibrationError(
            f"holds {held} samples, {total} were asked for",
            where=where,
            do=f"give more, or --samples {held}",
        )
    if source is not None and seed is None:
        total = min(total, len(source.files))
    names = [f"{Path(feeds).stem}:{k}" for k in range(total)] if feeds else []
    if source is not None and feeds is None:
        names = [source.names[k % len(source.names)] for k in range(total)]
    digests = {} if feeds is None else {Path(feeds).name: sha256_file(Path(feeds))}
    if source is not None:
        digests |= {path.name: sha256_file(path) for path in source.files}
    return OwnFeeds(tuple(names), arrays, inputs, digests, source, size, seed)


def synthetic_feeds(exported: Manifest, *, count: int, size: int, seed: int) -> OwnFeeds:
    """Standard normal floats (images: uniform in [-1, 1]), zeros and ones for integers."""
    inputs = needed_inputs(exported)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for needed in inputs:
        rest = [d if isinstance(d, int) else NOISE_SIZE for d in needed.shape[1:]]
        if needed.is_image:
            rest = [d if isinstance(d, int) else size for d in needed.shape[1:]]
            made = rng.uniform(-1, 1, (count, *rest)).astype(needed.dtype)
        elif np.issubdtype(needed.dtype, np.floating):
            made = rng.standard_normal((count, *rest)).astype(needed.dtype)
        else:
            made = rng.integers(0, 2, (count, *rest)).astype(needed.dtype)
        arrays[f"{needed.graph}/{needed.name}"] = made
    names = tuple(f"{NOISE}:{k}" for k in range(count))
    return OwnFeeds(names, arrays, inputs, {})


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of a `.npz`.

    Raises:
        CalibrationError: no such file, or another kind of file.
    """
    if not path.is_file():
        raise CalibrationError("no such file", where=str(path), do="--feeds takes a .npz of arrays")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            "is not a .npz of arrays", where=str(path), do="write it with numpy.savez"
        ) from error


def key_of(arrays: Mapping[str, Array], needed: GraphInput) -> str | None:
    """The name in the file of what feeds an input."""
    for key in (f"{needed.graph}/{needed.name}", needed.name):
        if key in arrays:
            return key
    return None


def check_names(arrays: Mapping[str, Array], inputs: Sequence[GraphInput], where: str) -> None:
    """Raises CalibrationError for an array that no input takes."""
    taken = {key for needed in inputs for key in (needed.name, f"{needed.graph}/{needed.name}")}
    unknown = sorted(set(arrays) - taken)
    if unknown:
        raise CalibrationError(
            f"{unknown[0]} is no input to feed",
            where=where,
            do=f"inputs: {', '.join(needed.text for needed in inputs)}",
        )


def image_input(inputs: Sequence[GraphInput], arrays: Mapping[str, Array]) -> GraphInput:
    """The one input that images go to.

    Raises:
        CalibrationError: several are left, or it is no image.
    """
    left = [needed for needed in inputs if key_of(arrays, needed) is None]
    if len(left) != 1 or not left[0].is_image:
        found = "; ".join(needed.text for needed in left) or "none"
        raise CalibrationError(
            f"--images feeds one float32 [N, 3, H, W] input, but those to feed are: {found}",
            do="give the other inputs with --feeds FILE.npz",
        )
    return left[0]


def check_arrays(
    arrays: Mapping[str, Array], inputs: Sequence[GraphInput], where: str
) -> int | None:
    """The number of samples that all arrays have, None without arrays.

    Raises:
        CalibrationError: another type, rank, size or number of samples, NaN or infinity.
    """
    counts: dict[str, int] = {}
    for needed in inputs:
        key = key_of(arrays, needed)
        if key is None:
            continue
        array = arrays[key]
        if array.dtype != needed.dtype:
            raise CalibrationError(
                f"{key} is {array.dtype}, but the input is {needed.text}",
                where=where,
                do=f"convert it: .astype(numpy.{needed.dtype})",
            )
        sizes = array.shape[1:]
        wanted = needed.shape if array.ndim == len(needed.shape) + 1 else needed.shape[1:]
        fixed = [(a, b) for a, b in zip(sizes, wanted, strict=False) if isinstance(b, int)]
        if array.ndim < 1 or len(sizes) != len(wanted) or any(a != b for a, b in fixed):
            raise CalibrationError(
                f"{key} has shape {list(array.shape)}, but the input is {needed.text}",
                where=where,
                do="give samples along the first axis",
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            raise CalibrationError(
                f"{key} has NaN or infinity in sample {int(bad[0])}",
                where=where,
                do="remove the sample",
            )
        counts[key] = len(array)
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise CalibrationError(
            f"arrays differ in their number of samples: {text}",
            where=where,
            do="give every input the same number",
        )
    found = next(iter(counts.values()), None)
    if found == 0:
        raise CalibrationError("holds no sample", where=where, do="give one at least")
    return found


def require_batch(
    inputs: Sequence[GraphInput], arrays: Mapping[str, Array], batch_size: int
) -> None:
    """Raises CalibrationError for a batch size that an input does not take."""
    for needed in inputs:
        key = key_of(arrays, needed)
        first = needed.shape[0] if needed.shape else None
        alone = key is not None and arrays[key].ndim > len(needed.shape)
        if alone and batch_size != 1:
            raise CalibrationError(
                f"{needed.text} has no sample axis", do="calibrate with --batch-size 1"
            )
        if not alone and isinstance(first, int) and first != batch_size:
            raise CalibrationError(
                f"{needed.text} takes batches of {first}, not of {batch_size}",
                do=f"calibrate with --batch-size {first}",
            )


def sample_digest(sample: Mapping[str, Array]) -> str:
    """sha256 of a sample's names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, array in sorted(sample.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
