"""`encode` and `decode`: images of any size to tokens in a .npz, and back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifacts import atomic_write
from ..errors import BundleError, CalibrationError, GenerationError
from ..runtime.images import (
    UnreadableImage,
    crop_back,
    from_model,
    load_image,
    save_image,
    to_model,
)
from ..runtime.tokenizer import ImageTokenizer


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
        BundleError: not a file of `encode`.
        GenerationError: a picture that is not finite; those before it are written.
    """
    tokenizer = ImageTokenizer.open(folder)
    kind = "tokens" if tokenizer.discrete else "latent"
    try:
        with np.load(tokens, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(
            "is not a .npz of `arvg-trt encode`", where=str(tokens), do="encode the images again"
        ) from error
    numbers = [k for k in range(len(arrays)) if f"{kind}_{k}" in arrays]
    if not numbers:
        raise BundleError(
            f"holds no {kind}", where=str(tokens), do="make it with `arvg-trt encode`"
        )
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in numbers:
        code = arrays[f"{kind}_{k}"]
        code = tokenizer.check_tokens(code) if tokenizer.discrete else code.astype(np.float32)
        image = from_model(tokenizer.decode(code))
        if f"size_{k}" in arrays:
            height, width = (int(v) for v in arrays[f"size_{k}"])
            top, left = (-height % tokenizer.stride) // 2, (-width % tokenizer.stride) // 2
            image = crop_back(image, (top, left), (height, width))
        paths.append(output / f"{k}.png")
        save_image(image, paths[-1])
    return paths
