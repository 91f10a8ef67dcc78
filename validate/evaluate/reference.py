"""Read sets of images, and references as the ADM evaluator has them, into features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CalibrationError
from ...runtime.images import IMAGE_SUFFIXES, load_image
from ...runtime.npz import BadArrays, read_npz
from ..metrics.moments import Gaussian
from ..quality.open import POOL, SPATIAL, FeatureNetwork
from .distribution import Features, Reference, gaussian

Images = NDArray[np.uint8]
Progress = Callable[[int, int], None]
BATCH = 32
# Keys of a reference of the ADM evaluator: the images, and the statistics of two features.
PICTURES = "arr_0"
STATISTICS = {POOL: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
WANTED = "give a .npz of the ADM evaluator (arr_0, mu, sigma, mu_s, sigma_s) or a folder of images"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Hold images that are read batch by batch: uint8 [n, H, W, 3] of one size."""

    count: int
    side: tuple[int, int]
    batches: Callable[[], Iterator[Images]]


def is_image_set(path: Path) -> bool:
    """Return whether a path is a .npz, or a folder with image files right in it."""
    if path.is_dir():
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir())
    return path.suffix == ".npz"


def open_images(path: Path) -> ImageSet:
    """Open a folder of images, or a .npz with images in `arr_0`.

    Raises:
        CalibrationError: no such images, or some of another size.
    """
    if path.is_dir():
        return folder_images(path)
    arrays = read_arrays(path)
    if PICTURES not in arrays:
        raise CalibrationError(f"has no images {PICTURES}", where=str(path), do=WANTED)
    return array_images(arrays[PICTURES], path)


def folder_images(folder: Path) -> ImageSet:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise CalibrationError("has no images", where=str(folder), do=WANTED)
    side = load_image(files[0]).shape[:2]

    def batches() -> Iterator[Images]:
        for start in range(0, len(files), BATCH):
            yield np.stack([load(file, side) for file in files[start : start + BATCH]])

    return ImageSet(len(files), (side[0], side[1]), batches)


def load(file: Path, side: tuple[int, ...]) -> Images:
    image = load_image(file)
    if image.shape[:2] != side:
        sizes = ["x".join(str(v) for v in size) for size in (image.shape[:2], side)]
        raise CalibrationError(
            f"is {sizes[0]}, the images before it are {sizes[1]}",
            where=str(file),
            do="bring all images to one size",
        )
    return image


def array_images(array: NDArray[Any], path: Path) -> ImageSet:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise CalibrationError(
            f"{PICTURES} is {array.dtype} {list(array.shape)}, not uint8 [N, H, W, 3]",
            where=str(path),
            do=WANTED,
        )

    def batches() -> Iterator[Images]:
        for start in range(0, len(array), BATCH):
            yield np.ascontiguousarray(array[start : start + BATCH])

    return ImageSet(len(array), (array.shape[1], array.shape[2]), batches)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Raises CalibrationError for a file that is no .npz."""
    if not path.is_file():
        raise CalibrationError("no such file or folder", where=str(path), do=WANTED)
    try:
        return dict(read_npz(path))
    except BadArrays as error:
        raise CalibrationError(str(error), where=str(path), do=error.do or WANTED) from error


def extract(
    images: ImageSet, network: FeatureNetwork, names: Sequence[str], progress: Progress
) -> dict[str, list[Features]]:
    """Return features by name, batch by batch; `progress` is called with images done and all."""
    found: dict[str, list[Features]] = {name: [] for name in names}
    done = 0
    for batch in images.batches():
        features = network.extract(batch)
        for name in names:
            found[name].append(features[name].astype(np.float32, copy=False))
        done += len(batch)
        progress(done, images.count)
    return found


def open_reference(path: Path, network: FeatureNetwork, progress: Progress) -> Reference:
    """Read a reference: its statistics as they are, and else those of its images.

    Raises:
        CalibrationError: it has neither, or statistics of another network's width.
    """
    given: dict[str, Gaussian] = {}
    images: ImageSet | None = None
    if path.is_dir():
        images = folder_images(path)
    else:
        arrays = read_arrays(path)
        given = statistics(arrays, network, path)
        if PICTURES in arrays:
            images = array_images(arrays[PICTURES], path)
        elif not given:
            names = ", ".join(list(arrays)[:6]) or "nothing"
            raise CalibrationError(
                f"has neither images nor statistics, but {names}",
                where=str(path),
                do=WANTED,
            )
    if images is None:
        return Reference(path.name, given, None)
    wanted = [name for name in STATISTICS if name in network.widths]
    features = extract(images, network, wanted, progress)
    made = {n: gaussian(iter(v)) for n, v in features.items() if n not in given}
    return Reference(path.name, {**made, **given}, np.concatenate(features[POOL]), images.side)


def statistics(
    arrays: dict[str, NDArray[Any]], network: FeatureNetwork, path: Path
) -> dict[str, Gaussian]:
    """Return the Gaussians that a file holds, by feature.

    Raises:
        CalibrationError: one half of a pair is missing, misshapen or not finite.
    """
    found: dict[str, Gaussian] = {}
    for name, (mean, covariance) in STATISTICS.items():
        if mean not in arrays and covariance not in arrays:
            continue
        if name not in network.widths:
            continue
        width = network.widths[name]
        for key, shape in ((mean, (width,)), (covariance, (width, width))):
            value = arrays.get(key)
            if value is None or value.shape != shape:
                what = "is missing" if value is None else f"is {list(value.shape)}"
                raise CalibrationError(
                    f"{key} {what}, where {name} of {network.name} has {list(shape)}",
                    where=str(path),
                    do="take the reference of the same feature network",
                )
            if not np.isfinite(value).all():
                raise CalibrationError(
                    f"{key} has values that are not finite", where=str(path), do=WANTED
                )
        found[name] = Gaussian(
            arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64)
        )
    return found
