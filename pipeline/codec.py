"""`encode` and `decode`: images of any size to tokens in a .npz, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import BundleError, CalibrationError, GenerationError
from ..runtime.images import UnreadableImage, crop_back, from_model, load_image, png_bytes, to_model
from ..runtime.npz import Array, BadArrays, read_npz
from ..runtime.tokenizer import ImageTokenizer, Latent, Tokens
from ..workspace.files import atomic_write


def encode_files(folder: Path, images: Sequence[Path], output: Path) -> None:
    """One array `tokens_K` (or `latent_K`) and `size_K` (H, W) an image, in a .npz.

    Raises:
        CalibrationError: a file that is no image.
        BundleError: an image of a size that the tokenizer is not made for; names it.
        GenerationError: a latent that is not finite; names the image.
    """
    tokenizer = ImageTokenizer.open(folder)
    arrays: dict[str, np.ndarray] = {"stride": np.array(tokenizer.stride)}
    for k, path in enumerate(images):
        try:
            image = load_image(path)
        except UnreadableImage as error:
            raise CalibrationError(f"cannot be read ({error})", where=str(path)) from error
        try:
            padded, _ = tokenizer.fit(image)
        except BundleError as error:
            # The tokenizer does not know which file the image came from.
            raise BundleError(error.what, where=str(path), do=error.do) from error
        tokens, latent = tokenizer.encode(to_model(padded))
        if not np.isfinite(latent).all():
            raise GenerationError(
                "the latent of the encoder is not finite",
                where=str(path),
                do="check the weights; an FP16 graph may overflow",
            )
        arrays[f"latent_{k}" if tokens is None else f"tokens_{k}"] = (
            latent if tokens is None else tokens
        )
        arrays[f"size_{k}"] = np.array(image.shape[:2])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(output, buffer.getvalue())


def decode_files(folder: Path, tokens: Path, output: Path) -> list[Path]:
    """Write `K.png` for every image of a .npz; returns their paths.

    Raises:
        BundleError: it is no .npz of `encode`, or of another tokenizer; nothing is written then.
        GenerationError: a picture that is not finite; those before it are written.
    """
    tokenizer = ImageTokenizer.open(folder)
    codes = read_codes(tokenizer, tokens)
    paths = []
    for k, (code, size) in codes.items():
        image = from_model(tokenizer.decode(code))
        if size is not None:
            require_same_size(image.shape[:2], size, tokenizer.stride, f"{tokens}: size_{k}")
            (height, width), stride = size, tokenizer.stride
            image = crop_back(image, (-height % stride // 2, -width % stride // 2), size)
        paths.append(output / f"{k}.png")
        atomic_write(paths[-1], png_bytes(image))
    return paths


Codes = dict[int, tuple[Tokens | Latent, tuple[int, int] | None]]


def read_codes(tokenizer: ImageTokenizer, file: Path) -> Codes:
    """Tokens (or latents) by number, and the sizes that their pictures had, all checked.

    Raises:
        BundleError: not a .npz of `encode`, or what this tokenizer does not make.
    """
    kind, again = "tokens" if tokenizer.discrete else "latent", "encode the images again"
    if not file.is_file():
        raise BundleError("no such file", where=str(file), do="name a .npz of `arvg-trt encode`")
    try:
        arrays = read_npz(file)
    except BadArrays as error:
        raise BundleError(
            f"is not a .npz of `arvg-trt encode`: {error}", where=str(file), do=error.do or again
        ) from error
    found: Codes = {}
    for k in range(len(arrays)):
        code, size = arrays.get(f"{kind}_{k}"), arrays.get(f"size_{k}")
        if code is None:
            continue
        where = f"{file}: {kind}_{k}"
        try:
            checked = tokenizer.check_tokens(code) if tokenizer.discrete else check_latent(code)
        except BundleError as error:
            raise BundleError(error.what, where=where, do=error.do) from error
        if len(checked) != 1:
            raise BundleError(f"is of {len(checked)} pictures, not of one", where=where, do=again)
        found[k] = checked, None if size is None else check_size(size, f"{file}: size_{k}")
    if not found:
        raise BundleError(f"holds no {kind}", where=str(file), do="make it with `arvg-trt encode`")
    return found


def check_latent(latent: Array) -> Latent:
    """A latent read from a file as float32 [1, C, h, w].

    Raises:
        BundleError: another shape or type, or values that are not finite.
    """
    if latent.ndim != 4 or latent.dtype.kind != "f" or not latent.size:
        raise BundleError(
            f"a latent of shape {list(latent.shape)} and type {latent.dtype}",
            do="give floats [1, C, h, w]",
        )
    if not np.isfinite(latent).all():
        raise BundleError("a latent with NaN or infinity", do="encode the images again")
    return latent.astype(np.float32)


def check_size(size: Array, where: str) -> tuple[int, int]:
    """A picture's (H, W); raises BundleError for what is none."""
    if size.shape != (2,) or size.dtype.kind not in "iu" or min(size.tolist()) < 1:
        shown = size.tolist() if size.size <= 4 else f"an array {list(size.shape)}"
        raise BundleError(
            f"is {shown}, not a height and a width", where=where, do="encode the images again"
        )
    return int(size[0]), int(size[1])


def require_same_size(
    decoded: tuple[int, ...], size: tuple[int, int], stride: int, where: str
) -> None:
    """Raises BundleError for the size of another picture than what was decoded."""
    if tuple(-(-side // stride) * stride for side in size) != tuple(decoded):
        raise BundleError(
            f"is {size[0]}x{size[1]} pixels, but the tokens are of {decoded[0]}x{decoded[1]}",
            where=where,
            do="encode the images again",
        )
