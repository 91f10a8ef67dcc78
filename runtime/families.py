"""Find families by name: this package's, and those that other packages bring as entry points.

[project.entry-points."arvg_trt.families"]
infinity = "my_package.infinity:FAMILY"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec

from ..errors import ArvgError, WorkspaceError, nearest
from ..workspace.files import decode_json
from ..workspace.verify import GENERATOR_FILE
from .family import PACKAGE, Family, load_named

GROUP = "arvg_trt.families"
SPEC_FILE = GENERATOR_FILE
EXPORT_FIRST = "export a generator there first"
# The packages below families/, each with a FAMILY of this name: imported when asked for.
BUILT_IN = (
    *("cosmos", "var", "rar", "par", "llamagen", "mar", "gsq"),
    *("var_vqvae", "maskgit_vq", "llamagen_vq", "kl_vae"),
    "custom",
)


def find_family(name: str, where: str | None = None) -> Family:
    """Return the family of a name, which need not be built in.

    Raises:
        WorkspaceError: there is none; has the nearest names. `where` is what names it.
        ArvgError: the package that brings it is broken.
    """
    if name in BUILT_IN:
        return load_family(built_in(name))
    foreign = plug_ins()
    for point in foreign:
        if point.name == name:
            return load_family(point)
    known = nearest(name, (*BUILT_IN, *(point.name for point in foreign)))
    raise WorkspaceError(
        f"no family named {name!r}",
        where=where,
        do=f"nearest: {known}; or install the package or the newer arvg-trt that brings it",
    )


def built_in_families() -> tuple[Family, ...]:
    """Return the families of this package, in the order that lists have them."""
    return tuple(load_family(built_in(name)) for name in BUILT_IN)


def foreign_families() -> tuple[Family, ...]:
    """Return the families that other packages bring.

    Raises:
        ArvgError: one does not load, is no family, or has a name that is taken.
    """
    taken = {model.name for family in built_in_families() for model in family.models}
    families = []
    for point in plug_ins():
        family = load_family(point)
        again = next((model.name for model in family.models if model.name in taken), None)
        if again is not None:
            raise refusal(point, f"its model {again!r} is there already", "rename the model")
        taken |= {model.name for model in family.models}
        families.append(family)
    return tuple(families)


def built_in(name: str) -> EntryPoint:
    return EntryPoint(name, f"{PACKAGE}.families.{name}:FAMILY", GROUP)


def plug_ins() -> tuple[EntryPoint, ...]:
    """Return the entry points of other packages, by name.

    Raises:
        ArvgError: two have one name, or one that of a built-in family.
    """
    points = tuple(sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)))
    counts = Counter(point.name for point in points)
    for point in points:
        if point.name in BUILT_IN:
            raise refusal(point, "is the name of a built-in family", "rename the entry point")
        if counts[point.name] > 1:
            others = ", ".join(p.value for p in points if p.name == point.name)
            raise refusal(point, f"several packages bring it: {others}", "uninstall all but one")
    return points


def load_family(point: EntryPoint) -> Family:
    """Import and return the family that an entry point names.

    Raises:
        ArvgError: it does not import, is no family, or is one of another name.
    """
    family = load_named(point.value, entry_point_line(point))
    for problem in problems(family, point.name):
        raise refusal(point, problem, "it is an error of that package")
    assert isinstance(family, Family)
    return family


def problems(family: object, name: str) -> Sequence[str]:
    """Return what is wrong with an object that should be the family `name`."""
    if not isinstance(family, Family):
        return [f"is a {type(family).__name__}, no Family"]
    messages = []
    if family.name != name:
        messages.append(f"gives a family named {family.name!r}")
    odd = [model.name for model in family.models if model.family != name]
    if odd:
        messages.append(f"its model {odd[0]!r} is of another family")
    if not family.exporter:
        messages.append("has no exporter")
    if family.spec is None:
        return messages
    config = family.spec.__struct_config__ if issubclass(family.spec, msgspec.Struct) else None
    if config is None or (config.tag_field, config.tag) != ("family", name):
        messages.append(f"its spec is no msgspec Struct with tag_field='family' and tag={name!r}")
    if not family.loop:
        messages.append("has a spec and no loop")
    return messages


def refusal(point: EntryPoint, what: str, do: str) -> ArvgError:
    """Return an error of one line that names the entry point and its package."""
    return ArvgError(what, where=entry_point_line(point), do=do)


def entry_point_line(point: EntryPoint) -> str:
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"entry point {point.name} = {point.value}{package}"


class FamilyName(msgspec.Struct, frozen=True):
    """Read the family of `generator.json`, before the rest is decoded by that family."""

    family: str


def read_family(folder: Path) -> Family:
    """Return the family that `generator.json` names.

    Raises:
        WorkspaceError: there is no such file, or no such family.
    """
    path = folder / SPEC_FILE
    return find_family(decode_json(path, FamilyName, do=EXPORT_FIRST).family, str(path))
