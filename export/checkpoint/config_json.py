"""Read the `config.json` beside a checkpoint, for what its tensors do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from ...errors import ExportError
from ...workspace.files import UNDECODABLE, said

Config = TypeVar("Config", bound=msgspec.Struct)


def read_beside(folder: Path, kind: type[Config]) -> Config:
    """Return the `config.json` of a folder as `kind`, ignoring other keys; absent, `kind()`.

    Raises:
        ExportError: not JSON, or a key of another type.
    """
    path = folder / "config.json"
    if not path.is_file():
        return kind()
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except UNDECODABLE as error:
        raise ExportError(
            f"cannot be read: {said(error)}", where=str(path), do="correct it, or remove it"
        ) from error


def require_known(key: str, value: object, size: str, where: str) -> None:
    """Raise for a value that neither tensors, nor an official size, nor `config.json` gives.

    Raises:
        ExportError: `value` is None; names the key.
    """
    if value is None:
        raise ExportError(
            f"has {size}, no official size, and no config.json says {key}",
            where=where,
            do=f'write {{"{key}": N}} with the value it was trained with into a config.json '
            "beside the weights",
        )


def require_agreement(config: object, said: Mapping[str, object], where: str) -> None:
    """Check that the values of a config.json are those of the tensors.

    Raises:
        ExportError: names every value that differs.
    """
    differ = [
        f"{name} is {getattr(config, name)} in the tensors, {value} in config.json"
        for name, value in said.items()
        if getattr(config, name) != value
    ]
    if differ:
        raise ExportError(
            "; ".join(differ), where=where, do="correct config.json, or use its own checkpoint"
        )
