"""Read the tokens or latents that `encode` wrote, with the sizes and names of their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import BundleError
from .bundle.layout import folded, name_problem
from .npz import Array, BadArrays, read_npz
from .tokenizer import ImageTokenizer, Latent, Tokens

LONGEST_NAME = 200  # bytes: what a temporary name adds has to fit too


class Code(NamedTuple):
    """Hold tokens or a latent, the size that the picture had and its name, where they are known."""

    code: Tokens | Latent
    size: tuple[int, int] | None
    name: str | None


Codes = dict[int, Code]


def picture_names(codes: Codes) -> list[str]:
    """Return the names of pictures, none of which are one on some file system."""
    names: dict[str, str] = {}
    for k, each in codes.items():
        stem, number = str(k) if each.name is None else Path(each.name).stem, 0
        name = f"{stem}.png"
        while folded(name) in names:
            number += 1
            name = f"{stem}_{number}.png"
        names[folded(name)] = name
    return list(names.values())


def known_name(array: Array | None) -> str | None:
    """Return the name of an image as `encode` stores it; None for what is no name of a file."""
    if array is None or array.ndim != 1 or array.dtype != np.uint8 or len(array) > LONGEST_NAME:
        return None
    name = array.tobytes().decode(errors="replace")
    # The file may be anybody's, and its names may lead out of the folder.
    return None if name_problem(name) or name_problem(f"{Path(name).stem}.png") else name


def read_codes(tokenizer: ImageTokenizer, file: Path) -> Codes:
    """Return tokens (or latents) by number, with sizes and names of their pictures, all checked.

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
            tokenizer.require_decodable(checked)
        except BundleError as error:
            raise BundleError(error.what, where=where, do=error.do) from error
        if len(checked) != 1:
            raise BundleError(f"is of {len(checked)} pictures, not of one", where=where, do=again)
        known = None if size is None else check_size(size, f"{file}: size_{k}")
        found[k] = Code(checked, known, known_name(arrays.get(f"name_{k}")))
    if not found and {"tokens", "latents"} & arrays.keys():
        raise BundleError(
            "is of `arvg-trt generate --tokens`, and not of `encode`",
            where=str(file),
            do="`arvg-trt generate` writes these images itself: give it -o FOLDER",
        )
    if not found:
        raise BundleError(f"holds no {kind}", where=str(file), do="make it with `arvg-trt encode`")
    return found


def check_latent(latent: Array) -> Latent:
    """Return a latent that was read from a file as float32 [1, C, h, w].

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
    """Return an image's (H, W); raises BundleError for what is none."""
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
