"""Read the tensors of a model's checkpoint files; no code from a pickle ever runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ExportError
from .hub import first_sentence
from .resolve import PICKLE_SUFFIXES
from .strict import split_parts
from .torchscript import is_torchscript, read_torchscript
from .wrappers import Weights, other, plain_names, unwrap

ZIP_MAGIC = b"PK\x03\x04"
FOREIGN_NAME = re.compile(r"GLOBAL ([\w.]+\w)")
# torch tests no narrower float for NaN; a model that takes one has to say what it means by it.
FINITE_TESTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# Tensors of so many numbers and fewer have values also where only shapes are asked for: they tell
# configurations.
SMALL = 1 << 14


def no_line(line: str) -> None:
    """Ignore a line."""


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """Say which weights to take where a file has averaged ones beside the last ones.

    `weights` is what the family's official evaluation takes, or what was `asked` for; `say` is
    called with a line about every file that has both.
    """

    weights: Weights = "ema"
    asked: bool = False
    say: Callable[[str], None] = no_line


def read_all(
    paths: Sequence[Path],
    infinite: Collection[str] = (),
    choice: WeightChoice | None = None,
    *,
    shapes_only: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of all files together; `infinite` names those with intended infinities.

    With `shapes_only` the values of large tensors are not read: those are on the meta device.

    Raises:
        ExportError: a file that cannot be read, one tensor with two values, NaN or infinity, or no
            file has both kinds of weights though one was asked for.
    """
    choice = choice or WeightChoice()
    tensors: dict[str, Tensor] = {}
    taken: list[str] = []
    for path in paths:
        found = read_tensors(path, choice.weights, taken)
        for name, tensor in found.items():
            if shapes_only and tensor.numel() > SMALL:
                tensor = tensor.to("meta")
            if name in tensors and not same(tensors[name], tensor):
                raise ExportError(
                    f"{name} differs from the one in {paths[0].name}",
                    where=str(path),
                    do="take all files from one checkpoint",
                )
            tensors[name] = tensor
    if choice.asked and not taken:
        raise ExportError(
            "has no averaged weights beside others",
            where=", ".join(str(p) for p in paths),
            do="leave out --weights",
        )
    for line in taken:
        hint = "" if choice.asked else f"; --weights {other(choice.weights)} for the latter"
        choice.say(line + hint)
    tested = {k: v for k, v in tensors.items() if k not in infinite and not v.is_meta}
    require_finite(tested, ", ".join(str(p) for p in paths))
    return tensors


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values; where these were not read, the shape."""
    if one.is_meta or other.is_meta:
        return one.shape == other.shape and one.dtype == other.dtype
    return torch.equal(one, other)


def read_tensors(
    path: Path, weights: Weights = "ema", taken: list[str] | None = None
) -> dict[str, Tensor]:
    """Return tensors of one file by name: TorchScript, safetensors, or a pickle of tensors.

    Names are those of the module itself, without what wrappers put before them. Where averaged
    weights lie beside the last ones, `weights` chooses, and a line about it is added to `taken`.

    Raises:
        ExportError: no such file, not a checkpoint, truncated, no tensors in it, or a pickle that
            asks for more than tensors.
    """
    taken = [] if taken is None else taken
    if not path.is_file():
        raise ExportError("no such file", where=str(path), do="check --checkpoint")
    if path.stat().st_size == 0:
        raise ExportError("is empty", where=str(path), do="download it again")
    try:
        tensors = plain_names(read_by_form(path, weights, taken), path)
    except zipfile.BadZipFile as error:
        raise ExportError(
            f"is a damaged archive: {first_sentence(error)}",
            where=str(path),
            do="download it again",
        ) from error
    except OSError as error:
        # A zip that lost its beginning makes zipfile seek to before the file.
        raise ExportError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            do="check its permissions, or download it again",
        ) from error
    except RecursionError as error:
        raise ExportError(
            "is a damaged archive: its modules contain each other",
            where=str(path),
            do="download it again",
        ) from error
    if not tensors:
        raise ExportError("holds no tensors", where=str(path), do="use another file")
    return tensors


def read_by_form(path: Path, weights: Weights, taken: list[str]) -> dict[str, Tensor]:
    """Read safetensors by suffix, TorchScript by content, and the rest by suffix as pickles."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ExportError(
                f"is not a complete safetensors file: {error}",
                where=str(path),
                do="download it again",
            ) from error
    if is_torchscript(path):
        return read_torchscript(path)
    if path.suffix == ".jit":
        raise ExportError(
            "is not a complete TorchScript archive", where=str(path), do="download it again"
        )
    if path.suffix not in PICKLE_SUFFIXES:
        raise ExportError(
            "is not a checkpoint",
            where=str(path),
            do=f"expected .jit, .safetensors, {', '.join(PICKLE_SUFFIXES)}",
        )
    return read_pickle(path, weights, taken)


class Options:
    """Replace the `argparse.Namespace` that trainers leave in their files; nobody reads it."""


def read_pickle(path: Path, weights: Weights, taken: list[str]) -> dict[str, Tensor]:
    """Read a file of torch.save, mapped, so that a trainer's optimizer state is never read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no words on pickle protocols before the error
            with torch.serialization.safe_globals([(Options, "argparse.Namespace")]):
                loaded = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=is_mappable(path)
                )
    except pickle.UnpicklingError as error:
        asked = FOREIGN_NAME.search(str(error))
        if asked is None:
            raise ExportError(
                "is not a checkpoint of torch.save", where=str(path), do="download it again"
            ) from error
        raise ExportError(
            f"was not read: its pickle asks for {asked[1]}, which is not a tensor",
            where=str(path),
            do="save its state_dict with torch.save, or convert it to safetensors",
        ) from error
    except RuntimeError as error:
        raise ExportError(
            f"is not a complete checkpoint: {first_sentence(error)}",
            where=str(path),
            do="download it again",
        ) from error
    except (EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExportError(
            "is not a checkpoint of torch.save", where=str(path), do="download it again"
        ) from error
    return unwrap(loaded, path, weights, taken)


def is_mappable(path: Path) -> bool:
    """Return whether torch.save wrote a zip; its older format is one stream of pickles."""
    with path.open("rb") as stream:
        return stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def parts_of(path: Path) -> str:
    """Return which parts of a generator a file holds, by the names of its tensors."""
    try:
        names = read_tensors(path)
    except ExportError as error:
        return f"no checkpoint ({error.what})"
    found = split_parts(names)
    held = [name for name, part in zip(("transformer", "tokenizer"), found, strict=True) if part]
    return " and ".join(held)


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    bad = [n for n, t in tensors.items() if t.dtype in FINITE_TESTED and not t.isfinite().all()]
    if bad:
        others = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise ExportError(
            f"NaN or infinity in {bad[0]}{others}", where=where, do="use another checkpoint"
        )
