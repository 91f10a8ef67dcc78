"""Read, convert, crop and pad images, without torch.

An image in memory is uint8 [H, W, 3] RGB; a model's image is float32 [N, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import CalibrationError, GenerationError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pixels of an image: Pillow's limit against small files that ask for much memory, and ours for
# what is enlarged.
MOST_PIXELS = 89_478_485
# Errors that Pillow's decoders raise for damaged files, documented or not.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, NotImplementedError),
    *(IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError),
)

Uint8Image = NDArray[np.uint8]
FloatImage = NDArray[np.float32]


class UnreadableImage(CalibrationError, ValueError):
    """Report a file from which no image can be made, its `kind` and the whole `reason`."""

    def __init__(self, name: str, reason: str, kind: str | None = None) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.kind = kind or reason


def load_image(path: Path) -> Uint8Image:
    """Decode a file to RGB: EXIF orientation applied, grey repeated, transparency over white.

    An animation gives its first frame.

    Raises:
        UnreadableImage: not an image, truncated, of floats, or too large to be safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no warnings of odd metadata, which nothing here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                require_few_pixels(path.name, image.width, image.height)
                turned = ImageOps.exif_transpose(image)
                return to_rgb(turned)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        pixels = f"{int(found[1]) / 1e6:,.0f}" if found else "too many"
        raise UnreadableImage(path.name, too_large(f"{pixels} million"), "too large") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise UnreadableImage(path.name, "empty" if empty else "no picture") from error
    except DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:  # of the file, not of what is in it
            raise UnreadableImage(path.name, error.strerror.lower()) from error
        kind = "cut off or damaged"
        raise UnreadableImage(path.name, f"{kind}: {first_line(error)}", kind) from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def too_large(pixels: str) -> str:
    return f"too large: it has {pixels} pixels, and at most {MOST_PIXELS // 10**6} million are read"


def require_few_pixels(name: str, width: int, height: int) -> None:
    """Raise UnreadableImage for an image that is too large to be safe."""
    if width * height > MOST_PIXELS:
        raise UnreadableImage(name, too_large(f"{width}x{height}"), "too large")


def require_enlargeable(name: str, width: int, height: int, size: int) -> None:
    """Raise UnreadableImage for an image that grows too large at short side `size`."""
    short = min(width, height)
    if short < size and width * height * (size / short) ** 2 > MOST_PIXELS:
        reason = f"too thin: {width}x{height} pixels, whose short side is to be enlarged to {size}"
        raise UnreadableImage(name, reason, "too thin")


def to_rgb(image: Image.Image) -> Uint8Image:
    """Convert an image of any Pillow mode to uint8 [H, W, 3]; 16-bit grey keeps its high byte.

    Raises:
        ValueError: floats, which have no range that is known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats: save them as 8-bit, or as .npy in [-1, 1]")
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image).astype(np.int64)
        high = np.clip(grey >> 8, 0, 255).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB"))


def save_image(image: Uint8Image, path: Path) -> None:
    Image.fromarray(image).save(path)


def png_bytes(image: Uint8Image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def image_grid(images: Uint8Image, columns: int | None = None, gap: int = 2) -> Uint8Image:
    """Return uint8 images [N, H, W, 3], N >= 1, as one image, row by row on white.

    It is as square as N allows if `columns` is not given.
    """
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def to_model(image: Uint8Image) -> FloatImage:
    """Return uint8 [H, W, 3] as float32 [1, 3, H, W] in [-1, 1], x / 127.5 - 1.

    Rows are in memory order: PyTorch takes any other order as channels-last, in which its group
    norms of large maps add with far fewer digits.
    """
    scaled = image.astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def from_model(image: NDArray[np.floating]) -> Uint8Image:
    """Return float [1, 3, H, W], clamped to [-1, 1], as uint8 [H, W, 3], rounded to nearest.

    Raises:
        GenerationError: values that are not finite, which would become black pixels.
    """
    bad = int(np.count_nonzero(~np.isfinite(image[0])))
    if bad:
        raise GenerationError(
            f"{bad} of {image[0].size} values of the image that the decoder made are not finite",
            do="check the weights and what was decoded; an FP16 graph may overflow",
        )
    unit = np.clip((image[0].astype(np.float32) + 1) / 2, 0, 1)
    rounded: Uint8Image = np.floor(unit * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return rounded


def pad_to_multiple(image: Uint8Image, multiple: int) -> tuple[Uint8Image, tuple[int, int]]:
    """Pad H and W with black to a multiple (half before, rest after), as the official app does.

    Returns the padded image and the (top, left) offset for `crop_back`.
    """
    height, width = image.shape[:2]
    extra_h, extra_w = -height % multiple, -width % multiple
    top, left = extra_h // 2, extra_w // 2
    padded = np.pad(image, ((top, extra_h - top), (left, extra_w - left), (0, 0)))
    return padded, (top, left)


def crop_back(image: Uint8Image, offset: tuple[int, int], size: tuple[int, int]) -> Uint8Image:
    """Undo `pad_to_multiple`: `size` is the original (H, W)."""
    (top, left), (height, width) = offset, size
    return image[top : top + height, left : left + width]


def center_crop(image: Uint8Image, size: int) -> Uint8Image:
    """Return the square centre of side `size`; smaller images are first enlarged (Lanczos)."""
    image = enlarge_to(image, size)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def shrunk_crop(image: Uint8Image, size: int) -> Uint8Image:
    """Return the square centre of side `size`, once the image's short side is shrunk to it."""
    height, width = image.shape[:2]
    if min(height, width) > size:
        ratio = size / min(height, width)
        target = (max(size, round(width * ratio)), max(size, round(height * ratio)))
        image = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))
    return center_crop(image, size)


def enlarge_to(image: Uint8Image, size: int) -> Uint8Image:
    """Scale up so that the short side is at least `size`; larger images stay as they are.

    Raises:
        UnreadableImage: it would become too large.
    """
    height, width = image.shape[:2]
    if min(height, width) >= size:
        return image
    require_enlargeable("picture", width, height, size)
    ratio = size / min(height, width)
    target = (max(size, round(width * ratio)), max(size, round(height * ratio)))
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.LANCZOS))
