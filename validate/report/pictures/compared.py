"""Put pictures of FP32 and of a candidate beside each other, those with the most error first."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ...formats import DB
from ...measure.tokenizer_accuracy import ComparedImage
from ...metrics.image import psnr
from ...metrics.worst import shown_candidate
from ..cells import CANDIDATES
from .rows import DIFFERENCE_FACTOR, MOST_SIDE, Image, ImageRow, Pixels

CAPTION = (
    "The worst first, by PSNR to FP32's image. The difference is |quantized \u2212 FP32|, "
    "multiplied and clamped; black is no difference."
)


def gap(a: Pixels, b: Pixels) -> Pixels:
    """Return |a - b| of uint8 images of one shape."""
    found: Pixels = np.abs(a.astype(np.int16) - b.astype(np.int16)).astype(np.uint8)
    return found


def difference(a: Pixels, b: Pixels, times: int = DIFFERENCE_FACTOR) -> Pixels:
    """Return |a - b| multiplied and clamped to 255; uint8 images of one shape."""
    clamped: Pixels = np.minimum(gap(a, b).astype(np.int32) * times, 255).astype(np.uint8)
    return clamped


def image_rows(pictures: Sequence[ComparedImage]) -> tuple[ImageRow, ...]:
    """Return a row a picture, the one with the lowest PSNR to FP32's image first."""
    return tuple(image_row(k, picture) for k, picture in enumerate(sorted(pictures, key=score)))


def score(picture: ComparedImage) -> float:
    """Return the PSNR in dB that pictures are ranked by; infinite for one equal to FP32's."""
    shown = shown_candidate(picture.candidates)
    return np.inf if shown is None else psnr(picture.reference, picture.candidates[shown])


def image_row(index: int, picture: ComparedImage) -> ImageRow:
    """Return the original if there is one, FP32's image, the candidate's and their difference."""
    stem = stem_of(index, picture)
    shown = shown_candidate(picture.candidates)
    quantized = picture.reference if shown is None else picture.candidates[shown]
    error = gap(picture.reference, quantized)
    window = most_error(error)
    cut = picture.reference[window].shape != picture.reference.shape

    def part(pixels: Pixels) -> Pixels | None:
        return np.ascontiguousarray(pixels[window]) if cut else None

    images = []
    if picture.original is not None:
        name, original = f"{stem}-original.png", picture.original
        images.append(Image("Original", name, original, "original", part(original)))
    fp32 = picture.reference
    images.append(Image("FP32", f"{stem}-fp32.png", fp32, "reference", part(fp32)))
    if shown is not None:
        many = difference(fp32, quantized)
        images += [
            Image(
                CANDIDATES[shown], f"{stem}-{shown}.png", quantized, "quantized", part(quantized)
            ),
            Image(
                f"Difference \u00d7{DIFFERENCE_FACTOR}",
                f"{stem}-difference.png",
                many,
                "difference",
                np.ascontiguousarray(error[window]),
            ),
        ]
    return ImageRow(picture.name, tuple(images), detail(picture, shown, cut))


def detail(picture: ComparedImage, shown: str | None, cut: bool) -> str:
    """Return a picture's own figures, and which part of it is shown."""
    texts = []
    if shown is not None:
        value = psnr(picture.reference, picture.candidates[shown])
        equal = ", no pixel differs" if np.isinf(value) else ""
        texts.append(f"PSNR to FP32 {DB(value)}{equal}")
        if picture.original is not None:
            own, fp32 = (
                DB(psnr(picture.original, image))
                for image in (picture.candidates[shown], picture.reference)
            )
            texts.append(f"to the original {own}, FP32's {fp32}")
    if cut:
        height, width = picture.reference.shape[:2]
        texts.append(f"the part with the most error of {width} \u00d7 {height} pixels")
    return "; ".join(texts)


def most_error(error: Pixels) -> tuple[slice, slice]:
    """Return the rows and columns, MOST_SIDE at most, in which the squared error is largest."""
    sums = np.pad(np.square(error.astype(np.float64)).sum(axis=2), ((1, 0), (1, 0)))
    sums = sums.cumsum(axis=0).cumsum(axis=1)
    high, wide = (min(side, MOST_SIDE) for side in error.shape[:2])
    inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return slice(int(top), int(top) + high), slice(int(left), int(left) + wide)


def stem_of(index: int, picture: ComparedImage) -> str:
    """Return how the files of a picture's images begin."""
    return f"samples/{index:03d}-" + re.sub(r"[^A-Za-z0-9_-]+", "_", picture.name)
