"""Define what tables of options share: described fields, checked before any work starts."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from ..errors import RecipeError
from .descriptions import Range

LONGEST_NAME = 100  # files and temporary folders add to it, and a name ends at 255 bytes
# Beyond these a number is a slip: what it asks for does not fit into a machine.
COUNT, ROUNDS, SIDE = Range(1, 10**7), Range(0, 10**7), Range(1, 8192)
THREADS, SEED = Range(0, 4096), Range(0, 2**63 - 1)
DEVICE = "cpu, cuda:0 (or another number), or auto for a GPU where one can be used."
DEFAULT_SAMPLES = 32  # where nobody says how many
ALLOW_FALLBACK = "Let parts of a graph run on the CPU that were for the GPU; each is reported."
OptionsT = TypeVar("OptionsT", bound="Options")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Serve as the base of all tables of options."""


def require_not_empty(options: Options, *names: str) -> None:
    """Raise ValueError for texts that are empty, or that hold a null character.

    An empty text would silently mean something else; no file has a null character in its name.
    """
    for name in names:
        value = getattr(options, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.strip():
                raise ValueError(f"{name} is empty: give a value, or leave it out")
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"{name} holds a null character")


def check_name(name: str, key: str = "name") -> None:
    """Raise ValueError for a name, the value of a `key`, that is no plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"{key} {name[:300]!r} is not letters, digits, '.', '_' and '-'")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{key} {name[:40]}... has {len(name)} characters, at most {LONGEST_NAME}")


def with_changes(options: OptionsT, **changes: object) -> OptionsT:
    """Return `options` with the command line's values over it; None leaves a value as it is.

    Raises:
        RecipeError: values that do not go together.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return msgspec.convert(
            {**msgspec.to_builtins(options), **given}, type(options), strict=True
        )
    except msgspec.ValidationError as error:
        raise RecipeError(str(error)) from error
