"""Where images come from: a folder of the user's, photographs that scikit-image ships, or noise.

A source is written `DIR`, `skimage:astronaut,coffee` (or `skimage` for all colour photographs).
Nothing here ever makes up data that was not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..packages import require_packages
from .images import IMAGE_SUFFIXES, Uint8Image, UnreadableImage, enlarge_to, load_image

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
    """Files in a fixed order, and the names of those that could not be read."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.files)

    def load(self, index: int) -> Uint8Image:
        """uint8 [H, W, 3] of file `index`; array files were checked when the source was opened."""
        return read_any(self.files[index])


def open_source(spec: str, *, error: type[CalibrationError] = CalibrationError) -> ImageSource:
    """Resolve a source and read every file once, so that bad ones are known before the work.

    Unreadable files are skipped and listed. Arrays with NaN, out of range, or images of one
    constant value are errors that name the file.

    Raises:
        CalibrationError: no such folder, no readable image, or an image that must not be used.
    """
    if spec == SKIMAGE_PREFIX or spec.startswith(f"{SKIMAGE_PREFIX}:"):
        candidates = skimage_files(spec)
    else:
        candidates = folder_files(Path(spec), error)
    good: list[Path] = []
    skipped: list[str] = []
    for path in candidates:
        try:
            image = read_any(path)
        except UnreadableImage:
            skipped.append(path.name)
            continue
        if image.min() == image.max():
            raise error(
                f"constant image (every value is {int(image.min())})",
                where=str(path),
                do="remove it: it says nothing about activation ranges",
            )
        good.append(path)
    if not good:
        count = f"{len(skipped)} files, none readable" if skipped else "no image files"
        raise error(
            count, where=spec, do=f"give a folder with {', '.join(IMAGE_SUFFIXES)} or .npy files"
        )
    return ImageSource(tuple(good), tuple(skipped))


def skimage_files(spec: str) -> list[Path]:
    """Paths of photographs inside the installed scikit-image wheel.

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


def folder_files(folder: Path, error: type[CalibrationError]) -> list[Path]:
    if not folder.exists():
        raise error("no such folder", where=str(folder), do="check the path of --images")
    if not folder.is_dir():
        raise error("is a file", where=str(folder), do="--images takes a folder")
    suffixes = (*IMAGE_SUFFIXES, ".npy")
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes)


def read_any(path: Path) -> Uint8Image:
    return read_array(path) if path.suffix.lower() == ".npy" else load_image(path)


def read_array(path: Path) -> Uint8Image:
    """A `.npy` image: uint8 [H, W, 3], or float [3, H, W] or [H, W, 3] in [-1, 1].

    Raises:
        CalibrationError: NaN or infinite values, or values outside [-1, 1]; names the file.
        UnreadableImage: not such an array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as failure:
        raise UnreadableImage(f"{path.name}: {failure}") from failure
    if not isinstance(array, np.ndarray):
        raise UnreadableImage(f"{path.name}: holds several arrays")
    if array.ndim != 3 or not array.size or 3 not in (array.shape[0], array.shape[2]):
        raise UnreadableImage(f"{path.name}: shape {array.shape} is not an RGB image")
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UnreadableImage(f"{path.name}: type {array.dtype}")
    return from_float_array(array, path)


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


def random_crops(
    source: ImageSource, count: int, size: int, seed: int, first: int = 0
) -> Iterator[Uint8Image]:
    """Square crops `first` to `count` - 1, image by image in turn.

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
    """Uniform noise, only for `--synthetic`, which stamps every report made from it."""
    for k in range(first, count):
        rng = np.random.default_rng([seed, k])
        yield rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def batches(images: Iterator[Uint8Image], size: int) -> Iterator[Sequence[Uint8Image]]:
    """Groups of at most `size` images."""
    group: list[Uint8Image] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
