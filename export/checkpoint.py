"""The tensors of a model's checkpoint files; no pickle of a stranger ever runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ExportError
from .checkpoint_files import PICKLE_SUFFIXES, first_sentence
from .torchscript import is_torchscript, read_torchscript

ZIP_MAGIC = b"PK\x03\x04"
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "trainer")
# What a trainer's snapshot holds side by side; together they are the checkpoint.
PARTS = ("var_wo_ddp", "vae_local")
# The averaged weights that MAR's trainer keeps beside the last ones: what is evaluated.
AVERAGE = "model_ema"
FOREIGN_NAME = re.compile(r"GLOBAL ([\w.]+\w)")
# torch tests no narrower float for NaN; a model that takes one has to say what it means by it.
FINITE_TESTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_all(paths: Sequence[Path], infinite: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of all files together; `infinite` names those that hold infinities by design.

    Raises:
        ExportError: a file that cannot be read, one tensor with two values, NaN or infinity.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path).items():
            if name in tensors and not torch.equal(tensors[name], tensor):
                raise ExportError(
                    f"{name} differs from the one in {paths[0].name}",
                    where=str(path),
                    do="take all files from one checkpoint",
                )
            tensors[name] = tensor
    tested = {k: v for k, v in tensors.items() if k not in infinite}
    require_finite(tested, ", ".join(str(p) for p in paths))
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file by name: TorchScript, safetensors, or a pickle of tensors alone.

    Raises:
        ExportError: no such file, not a checkpoint, truncated, no tensors in it, or a pickle that
            asks for more than tensors.
    """
    if not path.is_file():
        raise ExportError("no such file", where=str(path), do="check --checkpoint")
    if path.stat().st_size == 0:
        raise ExportError("is empty", where=str(path), do="download it again")
    try:
        tensors = read_by_form(path)
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


def read_by_form(path: Path) -> dict[str, Tensor]:
    """Safetensors by suffix, TorchScript by content, the rest by suffix as pickles."""
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
    return read_pickle(path)


class Options:
    """Stands for the `argparse.Namespace` that trainers leave in their files; nobody reads it."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A file of torch.save; mapped, so that a trainer's optimizer state is never read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, before the error about the file
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
    return unwrap(loaded, path)


def is_mappable(path: Path) -> bool:
    """Whether torch.save wrote a zip; its older form is one stream of pickles."""
    with path.open("rb") as stream:
        return stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state_dict inside the usual wrappers of trainers, each at most once.

    VAR's trainer keeps the transformer and the VQVAE beside its optimizer; both are taken. MAR's
    keeps averaged weights beside the last ones; those are taken.
    """
    for _ in range(len(WRAPPERS) + 1):
        if not isinstance(loaded, Mapping):
            break
        if loaded and all(isinstance(v, Tensor) for v in loaded.values()):
            return {str(k): v for k, v in loaded.items()}
        parts = [loaded[key] for key in PARTS if isinstance(loaded.get(key), Mapping)]
        if parts:
            loaded = {key: value for part in parts for key, value in part.items()}
            continue
        if isinstance(loaded.get(AVERAGE), Mapping):
            loaded = loaded[AVERAGE]
            continue
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if len(inner) > 1:
            raise ExportError(
                f"holds several state_dicts: {', '.join(inner)}",
                where=str(path),
                do="save the one to use in a file of its own",
            )
        if not inner:
            break
        loaded = loaded[inner[0]]
    raise ExportError(
        "holds no state_dict",
        where=str(path),
        do=f"expected tensors by name, alone or under {', '.join(WRAPPERS)}",
    )


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    bad = [n for n, t in tensors.items() if t.dtype in FINITE_TESTED and not t.isfinite().all()]
    if bad:
        others = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise ExportError(
            f"NaN or infinity in {bad[0]}{others}", where=where, do="use another checkpoint"
        )
