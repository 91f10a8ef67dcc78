"""Find a model by its name, its shipped weights, and check that a checkpoint is the model's."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ExportError, nearest
from ..runtime.families import built_in_families, foreign_families
from .base import Family, Variant

MODELS = Path(__file__).parent.parent / "models"
# A second distribution brings these to who installs a wheel; in a clone all lie in `MODELS`.
MINIS = "arvg-trt-minis"
MINIS_PACKAGE = "arvg_trt_minis"
IN_MINIS = ("gsq-mini", "llamagen-mini", "mar-mini", "par-mini", "var-mini")


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
    do = f"nearest: {nearest(name, names)}; all: arvg-trt models"
    if Path(name).suffix == ".onnx":
        do = f"a file of your own: arvg-trt export onnx WORKSPACE --graph {name}"
    raise ExportError(f"no model named {name!r}", do=do)


def shipped_checkpoint(entry: Variant) -> str:
    """Return the weights that ship for a model.

    Raises:
        ExportError: none do, or they are not installed; says where they are.
    """
    folder = shipped_folder(entry.name)
    if folder is not None:
        return str(folder)
    if entry.name in IN_MINIS:
        raise ExportError(
            f"the weights of {entry.name} are not installed",
            where=str(MODELS / entry.name),
            do=f"pip install {MINIS}, or give --checkpoint PATH",
        )
    published = f", or --checkpoint {entry.hub}" if entry.hub else ""
    raise ExportError(f"no checkpoint given for {entry.name}", do=f"--checkpoint PATH{published}")


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the weights that ship with this package or with `MINIS`, if they do."""
    places = [MODELS]
    package = find_spec(MINIS_PACKAGE)
    if package is not None and package.origin is not None:
        places.append(Path(package.origin).parent / "models")
    return next((found for place in places if (found := place / name).is_dir()), None)


def checkpoint_text(entry: Variant) -> str:
    """Return where a model's checkpoint is, as lists have it."""
    if entry.hub:
        return ", ".join(dict.fromkeys((entry.hub, *entry.elsewhere.values())))
    if shipped_folder(entry.name) is not None:
        return "shipped"
    return f"pip install {MINIS}" if entry.name in IN_MINIS else "train it: training/"


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
