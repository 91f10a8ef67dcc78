"""Hold images that are compared side by side, and the part of each that goes into an HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [H, W, 3]
# What an image is to the others of its row: a reference and a quantized one lie over each other.
Role = Literal["original", "reference", "quantized", "difference"]
TIMES = (1, 4, 8)  # by which the page multiplies differences
DIFFERENCE_FACTOR = 8  # of them, that which files have
MOST_CLAMPED = 0.3  # of a difference's values, with the factor that a page begins with
MOST_SIDE = 512  # of what a page embeds: more is cut to where the error is
MOST_BYTES = 5_000_000  # of one HTML file


@dataclass(frozen=True, slots=True)
class Image:
    """Hold an image, [H, W, 3] uint8, and its file relative to the page.

    `embedded` is what an HTML page shows of it, where that is not all of it as it is.
    """

    caption: str
    file: str
    pixels: Pixels
    role: Role = "original"
    embedded: Pixels | None = None

    def png(self) -> bytes:
        """Return the file's bytes."""
        return png(self.pixels)

    @property
    def shown(self) -> Pixels:
        """Return the pixels of the HTML page; a difference is multiplied by the page."""
        return self.pixels if self.embedded is None else self.embedded

    @property
    def first_times(self) -> int:
        """Return the largest factor that leaves shades of this difference apart.

        Images of other tokens differ so much that eight times it is white.
        """
        clear = [f for f in TIMES if (self.shown > 255 // f).mean() <= MOST_CLAMPED]
        return max(clear, default=min(TIMES))


@dataclass(frozen=True, slots=True)
class ImageRow:
    """Hold images that belong side by side, and the figures that they are ranked by."""

    title: str
    images: tuple[Image, ...]
    detail: str = ""


def first_times(rows: Iterable[ImageRow]) -> int:
    """Return the factor that all differences of a page begin with: that of the worst picture.

    With a factor of its own each, the worst would look as harmless as the best.
    """
    found = [i.first_times for row in rows for i in row.images if i.role == "difference"]
    return min(found, default=min(TIMES))


def png(pixels: Pixels) -> bytes:
    """Return an image as PNG."""
    from PIL import Image as PilImage

    stream = io.BytesIO()
    PilImage.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def data_uri(image: Image) -> str:
    """Return the address that holds what a page shows of an image."""
    return "data:image/png;base64," + base64.b64encode(png(image.shown)).decode("ascii")


def fitting(rows: Iterable[ImageRow], room: int) -> tuple[ImageRow, ...]:
    """Return the first rows whose images take no more than `room` bytes of a page together."""
    kept: list[ImageRow] = []
    for row in rows:
        room -= sum(len(data_uri(image)) for image in row.images)
        if room < 0:
            break
        kept.append(row)
    return tuple(kept)
