"""`encode` and `decode`: images of any size to tokens in a .npz, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.bundle.open import ANY, BundleAccess, located
from ..runtime.files import decode_images, encode_images, write_arrays
from ..runtime.images import png_bytes
from ..runtime.tokenizer import ImageTokenizer
from ..workspace.files import atomic_write
from ..workspace.stage import Reporter


def encode_files(
    folder: Path,
    images: Sequence[Path],
    output: Path,
    reporter: Reporter,
    *,
    device: str = "auto",
    allow_fallback: bool = False,
    access: BundleAccess = ANY,
) -> None:
    """Write tokens (or latents) and sizes of the images to a .npz.

    Raises:
        CalibrationError: a file that is no image.
        BundleError: an image of a size that the tokenizer is not made for; names it.
        GenerationError: a latent that is not finite; names the image.
    """
    tokenizer = open_tokenizer(folder, reporter, device, allow_fallback, access)
    write_arrays(output, encode_images(tokenizer, images))


def open_tokenizer(
    folder: Path, reporter: Reporter, device: str, allow_fallback: bool, access: BundleAccess
) -> ImageTokenizer:
    """Open a tokenizer on a device; warn of what runs on the CPU all the same.

    `folder` may be a bundle, which is checked by what `access` says.
    """
    graphs = located(folder, device, access, reporter, wants="tokenizer")
    tokenizer = ImageTokenizer.open(graphs, device=device, allow_fallback=allow_fallback)
    for text in tokenizer.fallbacks:
        reporter.warn(text)
    return tokenizer


def decode_files(
    folder: Path,
    tokens: Path,
    output: Path,
    reporter: Reporter,
    *,
    device: str = "auto",
    allow_fallback: bool = False,
    access: BundleAccess = ANY,
) -> list[Path]:
    """Write `K.png` for every image of a .npz; returns their paths.

    Raises:
        BundleError: it is no .npz of `encode`, or of another tokenizer; nothing is written then.
        GenerationError: a picture that is not finite; those before it are written.
    """
    paths = []
    tokenizer = open_tokenizer(folder, reporter, device, allow_fallback, access)
    for number, image in decode_images(tokenizer, tokens):
        paths.append(output / f"{number}.png")
        atomic_write(paths[-1], png_bytes(image))
    return paths
