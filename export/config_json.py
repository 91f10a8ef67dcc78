"""The `config.json` beside a checkpoint: what its tensors do not tell. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import ExportError

Json = TypeVar("Json", bound=msgspec.Struct)


def read_config_json(folder: Path, kind: type[Json]) -> Json:
    """The `config.json` of a folder; without one, nothing is told.

    Raises:
        ExportError: not JSON, or a key of another type.
    """
    path = folder / "config.json"
    if not path.is_file():
        return kind()
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ExportError(
            f"cannot be read: {error}", where=str(path), do="correct it, or remove it"
        ) from error


def require_told(config: object, told: Mapping[str, object], where: str) -> None:
    """What the tensors tell must agree with what the file says, by the names of `config`.

    Raises:
        ExportError: a name with two values.
    """
    differ = [
        f"{name} is {getattr(config, name)} in the tensors, {value} in config.json"
        for name, value in told.items()
        if getattr(config, name) != value
    ]
    if differ:
        raise ExportError(
            "; ".join(differ), where=where, do="correct config.json, or use its own checkpoint"
        )
