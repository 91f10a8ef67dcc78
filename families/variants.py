"""Find a model by its name, its shipped weights, and check that a checkpoint is the model's."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import ExportError, nearest
from ..runtime.families import built_in_families, foreign_families
from .base import Family, Variant

MODELS = Path(__file__).parent.parent / "models"


def all_families() -> tuple[Family, ...]:
    """Return the built-in families, then those of other packages.

    Raises:
        ArvgError: another package's cannot be used.
    """
    return (*built_in_families(), *foreign_families())


def all_variants() -> tuple[Variant, ...]:
    """Return every model of a known size, as lists have them."""
    return tuple(variant for family in all_families() for variant in family.variants)


def find_model(name: str) -> Variant:
    """Return a model by its name, or a family's model of any size by the family's.

    Raises:
        ExportError: there is none; has the nearest names.
        ArvgError: no built-in model has this name, and another package's family is broken.
    """
    built_in = [model for family in built_in_families() for model in family.models]
    for model in built_in:
        if model.name == name:
            return model
    foreign = [model for family in foreign_families() for model in family.models]
    for model in foreign:
        if model.name == name:
            return model
    names = [model.name for model in (*built_in, *foreign)]
    raise ExportError(
        f"no model named {name!r}", do=f"nearest: {nearest(name, names)}; all: arvg-trt models"
    )


def shipped_checkpoint(entry: Variant) -> str:
    """Return the weights that this package ships for a model.

    Raises:
        ExportError: it ships none; says where they are published.
    """
    folder = MODELS / entry.name
    if folder.is_dir():
        return str(folder)
    published = f", or --checkpoint {entry.hub}" if entry.hub else ""
    raise ExportError(f"no checkpoint given for {entry.name}", do=f"--checkpoint PATH{published}")


def check_config(entry: Variant, found: Any, where: str) -> None:
    """Check that a checkpoint of the configuration `found` is of this variant.

    Raises:
        ExportError: it is of another; says what differs.
    """
    if entry.config is None or found == entry.config:
        return
    like = next((e.name for e in all_variants() if e.config == found), None)
    do = f"it is a {like}" if like else "use the checkpoint of the model you name"
    if type(found) is not type(entry.config) or not is_dataclass(found):
        raise ExportError(f"is not {entry.name}, but of another family", where=where, do=do)
    differ = [
        f"{name} is {getattr(found, name)}, not {getattr(entry.config, name)}"
        for name in (field.name for field in fields(found))
        if getattr(found, name) != getattr(entry.config, name)
    ]
    raise ExportError(f"is not {entry.name}: {', '.join(differ)}", where=where, do=do)
