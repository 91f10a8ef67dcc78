"""Where images come from: a folder of the user's, or photographs that scikit-image ships.

A source is written `DIR`, `skimage:astronaut,coffee` (or `skimage` for all colour photographs).
Folders in `DIR`, such as one a class, are walked.
Nothing here ever makes up data that was not asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..extras import require_packages
from ..runtime.images import (
    IMAGE_SUFFIXES,
    Uint8Image,
    UnreadableImage,
    load_image,
    require_enlargeable,
    require_few_pixels,
)
from ..runtime.npz import BadArrays, read_npy
from ..workspace.files import sha256_file
from .base import SampleSource

SKIMAGE_PREFIX = "skimage"
SKIMAGE_FILES = {
    "astronaut": "astronaut.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "motorcycle_left": "motorcycle_left.png",
    "motorcycle_right": "motorcycle_right.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
SKIMAGE_COLOUR = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "motorcycle_left",
    "retina",
    "rocket",
)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Files in a fixed order, and those that could not be read with the reason (`NAME: REASON`).

    Files are called by their path below `root`.
    """

    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    root: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name_below(self.root, path) for path in self.files)

    @property
    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file by its name."""
        return {n: sha256_file(p) for n, p in zip(self.names, self.files, strict=True)}

    def load(self, index: int) -> Uint8Image:
        """Read file `index` as uint8 [H, W, 3]; array files were checked before."""
        return read_any(self.files[index])


class ImageSamples(SampleSource):
    """Samples of `part` of the user's images, which they are named after."""

    images: ImageSource
    part: range

    @property
    def names(self) -> tuple[str, ...]:
        return self.images.names

    @property
    def digests(self) -> Mapping[str, str]:
        return self.images.digests

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.images.skipped

    @property
    def count(self) -> int:
        return len(self.part)


def name_below(root: Path | None, path: Path) -> str:
    """Return `CLASS/FILE` within class folders, else the file's own name."""
    return path.name if root is None else path.relative_to(root).as_posix()


def open_source(
    spec: str,
    *,
    size: int = 1,
    most: int | None = None,
    error: type[CalibrationError] = CalibrationError,
) -> ImageSource:
    """Resolve a source and read its files once, so that bad ones are known before the work.

    Unreadable files are skipped and listed, and pictures that grow too large when their short side
    becomes `size`. Arrays with NaN, out of range, or images of one constant value are errors that
    name the file. No more than `most` good files are looked for.

    Raises:
        CalibrationError: no such folder, no readable image, or an image that must not be used.
    """
    root = None
    if spec == SKIMAGE_PREFIX or spec.startswith(f"{SKIMAGE_PREFIX}:"):
        candidates = skimage_files(spec)
    else:
        root = Path(spec)
        candidates = folder_files(spec, error)
    good: list[Path] = []
    bad: list[UnreadableImage] = []
    for path in candidates:
        if len(good) == most:
            break
        try:
            image = read_any(path)
            require_enlargeable(path.name, image.shape[1], image.shape[0], size)
        except UnreadableImage as problem:
            bad.append(UnreadableImage(name_below(root, path), problem.reason, problem.kind))
            continue
        if image.min() == image.max():
            raise error(
                f"constant image (every value is {int(image.min())})",
                where=str(path),
                do="remove it: it says nothing about activation ranges",
            )
        good.append(path)
    if not good:
        do = f"give a folder with {', '.join(IMAGE_SUFFIXES)} or .npy files"
        raise error(none_readable(bad) if bad else none_there(Path(spec)), where=spec, do=do)
    return ImageSource(tuple(good), tuple(str(problem) for problem in bad), root)


def skipped_text(skipped: Sequence[str]) -> str:
    """Return the warning of files that were left out, the first five by name."""
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    files = "file" if len(skipped) == 1 else "files"
    return f"skipped {len(skipped)} unreadable {files}: {'; '.join(skipped[:5])}{more}"


def none_readable(bad: Sequence[UnreadableImage]) -> str:
    """Say how many files there are of each kind that cannot be read, with the first of each."""
    kinds: dict[str, list[UnreadableImage]] = {}
    for problem in bad:
        kinds.setdefault(problem.kind, []).append(problem)
    parts = []
    for kind, found in kinds.items():
        first = found[0]
        detail = "" if first.reason == kind else f": {first.reason}"
        parts.append(f"{len(found)} {kind} ({first.name}{detail})")
    files = "file" if len(bad) == 1 else "files"
    return f"{len(bad)} {files}, none readable: {'; '.join(parts)}"


def none_there(folder: Path) -> str:
    """Say that there are no images, and what there is instead."""
    ends = Counter(path.suffix.lower() or "no suffix" for path in walk(folder))
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common(3))
    return f"no image files (it holds {told})" if told else "no image files"


def skimage_files(spec: str) -> list[Path]:
    """Return the paths of photographs inside the installed scikit-image wheel.

    Raises:
        CalibrationError: it ships no photograph of such a name.
        ArvgError: scikit-image is not installed.
    """
    require_packages("report")
    _, _, listed = spec.partition(":")
    names = listed.split(",") if listed else list(SKIMAGE_COLOUR)
    unknown = [name for name in names if name not in SKIMAGE_FILES]
    if unknown:
        raise CalibrationError(
            f"scikit-image ships no photograph named {', '.join(unknown)}",
            do=f"choose from {', '.join(SKIMAGE_FILES)}",
        )
    folder = Path(str(resources.files("skimage.data")))
    return [folder / SKIMAGE_FILES[name] for name in names]


def folder_files(spec: str, error: type[CalibrationError]) -> list[Path]:
    """Return the files below a folder that may be images; those without a suffix too.

    By name; of class folders the first of each, then the second of each.
    """
    folder = Path(spec)
    if not spec.strip():
        raise error("no folder named", where="--images", do="give a folder")
    if not folder.exists():
        raise error("no such folder", where=spec, do="check the path of --images")
    if not folder.is_dir():
        raise error("is a file", where=spec, do="--images takes a folder")
    suffixes = (*IMAGE_SUFFIXES, ".npy", "")
    within: dict[Path, list[Path]] = {}
    for path in walk(folder):
        if path.suffix.lower() in suffixes:
            within.setdefault(path.parent, []).append(path)
    own = within.pop(folder, [])
    turns = zip_longest(*(within[parent] for parent in sorted(within)))
    return own + [path for turn in turns for path in turn if path is not None]


def walk(folder: Path) -> list[Path]:
    """List every file below a folder, by name; hidden ones apart, and each linked folder once."""

    def refuse(problem: OSError) -> None:
        raise problem

    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent) / name for name in sorted(files) if not name.startswith("."))
        found += [path for path in paths if path.is_file() or path.is_symlink()]
    return found


def read_any(path: Path) -> Uint8Image:
    return read_array(path) if path.suffix.lower() == ".npy" else load_image(path)


def read_array(path: Path) -> Uint8Image:
    """Read a `.npy` image: uint8 [H, W, 3], or float [3, H, W] or [H, W, 3] in [-1, 1].

    Raises:
        CalibrationError: NaN or infinite values, or values outside [-1, 1]; names the file.
        UnreadableImage: not such an array.
    """
    try:
        # Mapped: a header that claims more than the file has takes no memory.
        array = read_npy(path)
    except BadArrays as failure:
        reason = f"no array that is read: {failure}"
        raise UnreadableImage(path.name, reason, "no array that is read") from failure
    shape, kind = array.shape, "no array of pixels"
    if array.ndim != 3 or not array.size or 3 not in (shape[0], shape[2]):
        raise UnreadableImage(path.name, f"no array of pixels: its shape is {list(shape)}", kind)
    require_few_pixels(path.name, array.size // 3, 1)
    if array.dtype == np.uint8 and shape[2] == 3:
        return np.array(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UnreadableImage(path.name, f"no array of pixels: its type is {array.dtype}", kind)
    with np.errstate(invalid="ignore"):  # of NaN, which is refused next
        wide = array.astype(np.float64)
    return from_float_array(wide, path)


def from_float_array(array: NDArray[np.floating], path: Path) -> Uint8Image:
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise CalibrationError(
            f"{bad} values are NaN or infinite", where=str(path), do="remove or repair the file"
        )
    low, high = float(array.min()), float(array.max())
    if low < -1 or high > 1:
        raise CalibrationError(
            f"values from {low:g} to {high:g}, but a float image lies in [-1, 1]",
            where=str(path),
            do="scale it: x / 127.5 - 1 for 0..255, 2 * x - 1 for 0..1",
        )
    if low >= 0 and high > 0:
        raise CalibrationError(
            f"values from {low:g} to {high:g}: looks like 0..1, but a float image lies in [-1, 1]",
            where=str(path),
            do="scale it: 2 * x - 1",
        )
    image = array if array.shape[2] == 3 else array.transpose(1, 2, 0)
    return np.floor((image.astype(np.float64) + 1) * 127.5 + 0.5).astype(np.uint8)
