"""Finding a model by its name, the weights that ship for it, and whether a checkpoint is its."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ..errors import ExportError, nearest
from .zoo_entries import ANY_SIZE, ZOO, Config, ZooEntry

MODELS = Path(__file__).parent.parent / "models"


def find_model(name: str) -> ZooEntry:
    """Raises ExportError with the nearest names."""
    known = (*ZOO, *ANY_SIZE)
    for entry in known:
        if entry.name == name:
            return entry
    names = [entry.name for entry in known]
    raise ExportError(
        f"no model named {name!r}", do=f"nearest: {nearest(name, names)}; all: arvg-trt models"
    )


def shipped_checkpoint(entry: ZooEntry) -> str:
    """The weights that this package ships for a model.

    Raises:
        ExportError: it ships none; says where they are published.
    """
    folder = MODELS / entry.name
    if folder.is_dir():
        return str(folder)
    published = f", or --checkpoint {entry.hub}" if entry.hub else ""
    raise ExportError(f"no checkpoint given for {entry.name}", do=f"--checkpoint PATH{published}")


def check_config(entry: ZooEntry, found: Config, where: str) -> None:
    """A checkpoint of another variant is refused, with what differs."""
    if entry.config is None or found == entry.config:
        return
    like = next((e.name for e in ZOO if e.config == found), None)
    do = f"it is a {like}" if like else "use the checkpoint of the model you name"
    if type(found) is not type(entry.config):
        raise ExportError(f"is not {entry.name}, but of another family", where=where, do=do)
    differ = [
        f"{name} is {getattr(found, name)}, not {getattr(entry.config, name)}"
        for name in (field.name for field in fields(found))
        if getattr(found, name) != getattr(entry.config, name)
    ]
    raise ExportError(f"is not {entry.name}: {', '.join(differ)}", where=where, do=do)
