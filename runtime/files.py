"""Files that users give and get: images as tokens in a .npz and back, and generated images."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import numpy as np

from ..errors import BundleError, CalibrationError, GenerationError, WorkspaceError
from ..workspace.files import atomic_stream, atomic_write
from .bundle.layout import folded, name_problem
from .generator import Generated
from .images import (
    Uint8Image,
    UnreadableImage,
    crop_back,
    from_model,
    image_grid,
    load_image,
    png_bytes,
    to_model,
)
from .npz import Array, BadArrays, read_npz
from .tokenizer import ImageTokenizer, Latent, Tokens, check_latent

LONGEST_NAME = 200  # bytes: what a temporary name adds has to fit too
GRID = "grid.png"
GRID_MOST = 100  # a picture of more says nothing


def encode_images(tokenizer: ImageTokenizer, images: Sequence[Path]) -> dict[str, Array]:
    """Return `tokens_K` (or `latent_K`), `size_K` (H, W) and `name_K` of each image, and `stride`.

    A name is the file's, as bytes of UTF-8.

    Raises:
        CalibrationError: a file that is no image.
        BundleError: an image of a size that the tokenizer is not made for; names it.
        GenerationError: a latent that is not finite; names the image.
    """
    arrays: dict[str, Array] = {"stride": np.array(tokenizer.stride)}
    for k, path in enumerate(images):
        try:
            image = load_image(path)
        except UnreadableImage as error:
            do = "name its images: FOLDER/*.jpg" if path.is_dir() else None
            what = f"cannot be read: {error.reason}"
            raise CalibrationError(what, where=str(path), do=do) from error
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
        arrays[f"name_{k}"] = np.frombuffer(path.name.encode(errors="replace"), np.uint8)
    return arrays


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write a compressed .npz in one rename."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())


def decode_pictures(
    tokenizer: ImageTokenizer, tokens: Path, folder: Path, *, replace: bool = False
) -> list[Path]:
    """Write a PNG for each image of a .npz of `encode`, in the size that it had; return the paths.

    A picture has the name of the image that was encoded; where that is not known, its number.

    Raises:
        BundleError: it is no .npz of `encode`, or of another tokenizer; nothing is written then.
        WorkspaceError: a file is there already, unless they may `replace` it.
        GenerationError: an image that is not finite; those before it are written.
    """
    stride, codes = tokenizer.stride, read_codes(tokenizer, tokens)
    paths = [folder / name for name in picture_names(codes)]
    if not replace:
        require_new(paths)
    for path, (k, (code, size, _)) in zip(paths, codes.items(), strict=True):
        image = from_model(tokenizer.decode(code))
        if size is not None:
            require_same_size(image.shape[:2], size, stride, f"{tokens}: size_{k}")
            height, width = size
            image = crop_back(image, (-height % stride // 2, -width % stride // 2), size)
        atomic_write(path, png_bytes(image))
    return paths


def require_new(paths: Sequence[Path]) -> None:
    """Raise WorkspaceError for the first file that is there already."""
    there = next((path for path in paths if os.path.lexists(path)), None)
    if there is not None:
        do = "name another file or folder, or replace it with --force"
        raise WorkspaceError("is there already", where=str(there), do=do)


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


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Where to write: a folder of PNGs with their grid, the evaluator's .npz, tokens or latents."""

    folder: Path | None = None
    npz: Path | None = None
    tokens: Path | None = None

    def paths(self, labels: Sequence[int]) -> list[Path]:
        """Return the files that are written for images of some labels."""
        pictures = [*png_paths(self.folder, labels), self.folder / GRID] if self.folder else []
        return [*pictures, *(path for path in (self.npz, self.tokens) if path)]


def write_batches(
    batches: Iterator[Generated],
    shape: tuple[int, ...],
    outputs: Outputs,
    columns: int | None = None,
) -> list[Path]:
    """Write every batch as it comes; `shape` is that of all images, [N, H, W, 3].

    Their grid has `columns`; PNGs are written as they come, the .npz take their names at the end.
    """
    files: list[Path] = []
    tokens: list[np.ndarray] = []
    first: list[Uint8Image] = []
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(npz_stream(outputs.npz, shape)) if outputs.npz else None
        done = 0
        for batch in batches:
            if outputs.folder:
                files += write_pngs(outputs.folder, batch, done)
            if stream:
                stream.write(batch.images.tobytes())
            first += list(batch.images[: max(0, GRID_MOST - done)])
            tokens.append(batch.tokens)
            done += len(batch.labels)
    if outputs.folder:
        files.append(outputs.folder / GRID)
        atomic_write(files[-1], png_bytes(image_grid(np.stack(first), columns)))
    if outputs.npz:
        files.append(outputs.npz)
    if outputs.tokens:
        buffer = io.BytesIO()
        kind = "latents" if np.issubdtype(tokens[0].dtype, np.floating) else "tokens"
        np.savez(buffer, allow_pickle=False, **{kind: np.concatenate(tokens)})
        atomic_write(outputs.tokens, buffer.getvalue())
        files.append(outputs.tokens)
    return files


def png_paths(folder: Path, labels: Sequence[int], number: int = 0) -> list[Path]:
    """Return the path of each picture of some labels, the first of which has `number`."""
    return [folder / f"{number + k:05d}_{label}.png" for k, label in enumerate(labels)]


def write_pngs(folder: Path, batch: Generated, number: int) -> list[Path]:
    """Write `NUMBER_LABEL.png` for each image of a batch whose first has `number`."""
    paths = png_paths(folder, batch.labels.tolist(), number)
    for path, image in zip(paths, batch.images, strict=True):
        atomic_write(path, png_bytes(image))
    return paths


@contextlib.contextmanager
def npz_stream(path: Path, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Open a file for the bytes of `arr_0`, uint8 of `shape`; it becomes `path` at the end.

    It is what the ADM evaluator reads: an .npz that need not fit in memory.
    """
    with (
        atomic_stream(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream
