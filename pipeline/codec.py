"""`encode` and `decode`: images of any size to tokens in a .npz, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.bundle.open import ANY, BundleAccess, located
from ..runtime.files import decode_pictures, encode_images, require_new, write_arrays
from ..runtime.tokenizer import ImageTokenizer
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
    replace: bool = False,
) -> None:
    """Write tokens (or latents) and sizes of the images to a .npz.

    Raises:
        WorkspaceError: the .npz is there already, unless it may be `replace`d.
        CalibrationError: a file that is no image.
        BundleError: an image of a size that the tokenizer is not made for; names it.
        GenerationError: a latent that is not finite; names the image.
    """
    if not replace:
        require_new([output])
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
    replace: bool = False,
) -> list[Path]:
    """Write a PNG for every image of a .npz; return their paths.

    Raises:
        BundleError, WorkspaceError, GenerationError: as `decode_pictures`.
    """
    tokenizer = open_tokenizer(folder, reporter, device, allow_fallback, access)
    return decode_pictures(tokenizer, tokens, output, replace=replace)
