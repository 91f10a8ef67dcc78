"""A generator's view of a user's images: their tokens, in the order that it makes them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CalibrationError
from ..runtime.images import shrunk_crop, to_model
from ..runtime.labels import parse_labels
from ..runtime.spec import GeneratorSpec
from ..runtime.tokenizer import ImageTokenizer
from .images import ImageSource


def image_labels(source: ImageSource, labels: str | None, num_classes: int) -> list[int]:
    """A class for each image, in their order: one each, or the same one for all.

    Raises:
        CalibrationError: none given, or another number of them than of images.
        GenerationError: a label out of range.
    """
    count = len(source.names)
    if labels is None:
        raise CalibrationError(
            f"{count} images without classes",
            where="--labels",
            do="give a class an image, in the order of their names, or one for all",
        )
    found = parse_labels([labels], num_classes)
    if len(found) not in (1, count):
        raise CalibrationError(
            f"{len(found)} classes for {count} images",
            where="--labels",
            do="give a class an image, in the order of their names, or one for all",
        )
    return found if len(found) == count else found * count


def require_size(source: ImageSource, size: int) -> None:
    """Raises CalibrationError for images with a side shorter than the model's pictures."""
    small = [
        f"{name} {image.shape[1]}x{image.shape[0]}"
        for name, image in ((n, source.load(k)) for k, n in enumerate(source.names))
        if min(image.shape[:2]) < size
    ]
    if small:
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        raise CalibrationError(
            f"smaller than the {size}x{size} pixels that the model makes: "
            f"{', '.join(small[:3])}{more}",
            where="--images",
            do="remove them, or enlarge them yourself",
        )


def image_tokens(
    export: Path, spec: GeneratorSpec, source: ImageSource, threads: int = 0
) -> Iterator[NDArray[np.int32]]:
    """The tokens of each image, int32 [1, L], in the order of generation."""
    tokenizer = ImageTokenizer.open(export, threads=threads)
    for k in range(len(source.names)):
        indices, _ = tokenizer.encode(to_model(shrunk_crop(source.load(k), spec.image_size)))
        assert indices is not None
        yield indices.reshape(1, -1)[:, spec.order]
