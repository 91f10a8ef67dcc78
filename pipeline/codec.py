"""`encode` and `decode`: images of any size to tokens in a .npz, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.files import decode_images, encode_images, write_arrays
from ..runtime.images import png_bytes
from ..runtime.tokenizer import ImageTokenizer
from ..workspace.files import atomic_write


def encode_files(folder: Path, images: Sequence[Path], output: Path) -> None:
    """Write tokens (or latents) and sizes of the images to a .npz.

    Raises:
        CalibrationError: a file that is no image.
        BundleError: an image of a size that the tokenizer is not made for; names it.
        GenerationError: a latent that is not finite; names the image.
    """
    write_arrays(output, encode_images(ImageTokenizer.open(folder), images))


def decode_files(folder: Path, tokens: Path, output: Path) -> list[Path]:
    """Write `K.png` for every image of a .npz; returns their paths.

    Raises:
        BundleError: it is no .npz of `encode`, or of another tokenizer; nothing is written then.
        GenerationError: a picture that is not finite; those before it are written.
    """
    paths = []
    for number, image in decode_images(ImageTokenizer.open(folder), tokens):
        paths.append(output / f"{number}.png")
        atomic_write(paths[-1], png_bytes(image))
    return paths
