"""Read tensors from a TorchScript archive, without running or compiling anything in it.

`torch.jit.load` would deserialize and compile the archive's code. Only its `data.pkl` and storages
are read here, with an unpickler that knows tensors, containers and `__torch__` module classes, and
refuses every other name.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError

STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptObject:
    """Replace a `__torch__` module: it has the attributes and nothing else."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # no zip, or damaged
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return all tensors of the archive's modules, by the names that `state_dict` gives.

    Raises:
        ExportError: truncated or damaged, or a pickle that asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            root = TensorUnpickler(archive, name.removesuffix("data.pkl")).load()
    except (
        zipfile.BadZipFile,
        StopIteration,
        EOFError,
        LookupError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise ExportError(
            f"is a damaged TorchScript archive: {error}", where=str(path), do="download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"was not read: {error}", where=str(path), do="use the official checkpoint"
        ) from error
    tensors: dict[str, Tensor] = {}
    collect_tensors(root, "", tensors)
    return tensors


def collect_tensors(value: object, prefix: str, into: dict[str, Tensor]) -> None:
    if not isinstance(value, ScriptObject):
        return
    for name, attribute in value.attributes.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(attribute, Tensor):
            into[path] = attribute
        else:
            collect_tensors(attribute, path, into)


class TensorUnpickler(pickle.Unpickler):
    """Read `data.pkl`; storages come from `PREFIX/data/KEY` of the same archive."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self.archive = archive
        self.prefix = prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return ScriptObject
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): first_argument,
            ("torch.jit._pickle", "restore_type_tag"): first_argument,
            ("torch", "device"): str,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return first_argument
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count)
                if count
                else (torch.empty(0, dtype=dtype))
            )
        return self.storages[key]


def rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def first_argument(value: Any, *_: object) -> Any:
    return value
