"""Refuse a file of another kind, or of another version than is read here, by the name it gives."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

UPGRADE = "upgrade arvg-trt"
_SCHEMA = re.compile(r"arvg-trt/(?P<name>[a-z-]+)/v(?P<version>\d{1,9})")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class SchemaProblem(NamedTuple):
    """Hold what is wrong with the schema of a file; `do` is None where its stage is run again."""

    what: str
    do: str | None


class Stated(msgspec.Struct, frozen=True):
    """Read the schema that a file names before the rest, which another version may have changed."""

    schema: Any = None


def schema_of(kind: Any) -> str | None:
    """Return the one schema that a struct reads; None for what has none."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return None
    literal = get_type_hints(kind).get("schema")  # without what is said of it
    return str(get_args(literal)[0]) if get_origin(literal) is Literal else None


def problem_in(data: bytes, kind: Any) -> SchemaProblem | None:
    """Return what is wrong with the schema that a JSON file names; None if nothing is.

    A file that cannot be decoded, or names no schema, is left to the decoder of the whole.
    """
    wanted = schema_of(kind)
    if wanted is None:
        return None
    try:
        stated = msgspec.json.decode(data, type=Stated).schema
    except _UNREADABLE:
        return None
    return None if stated is None else schema_problem(stated, wanted)


def schema_problem(stated: object, wanted: str) -> SchemaProblem | None:
    """Return what is wrong with the schema that a file names; None if it is the one `wanted`."""
    if stated == wanted:
        return None
    reads = wanted.removeprefix("arvg-trt/")
    if stated is None:
        return SchemaProblem(f"names no schema, where {reads} is read", None)
    found = _SCHEMA.fullmatch(stated) if isinstance(stated, str) else None
    expected = _SCHEMA.fullmatch(wanted)
    if found is None or expected is None:
        shown = repr(stated)[:60]
        return SchemaProblem(f"names the schema {shown}, where {reads} is read", None)
    name = f"{found['name']}/v{int(found['version'])}"
    if found["name"] != expected["name"]:
        return SchemaProblem(f"is {name}, where {reads} is read", f"name a {expected['name']}")
    if int(found["version"]) > int(expected["version"]):
        return SchemaProblem(f"{name} is newer than this arvg-trt reads, {reads}", UPGRADE)
    return SchemaProblem(f"{name} is older than this arvg-trt reads, {reads}", None)
