"""Define arguments and options that commands share, and options made from structs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
import msgspec

from ...recipe.base import ALLOW_FALLBACK, DEVICE
from ...recipe.descriptions import FieldDescription, ValueType, fields_of
from ...recipe.quantize import MAX_MEMORY
from . import completion
from .groups import GroupedOption, option

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)


device_option = click.option("--device", default="auto", show_default=True, help=DEVICE)
fallback_option = click.option("--allow-fallback", is_flag=True, help=ALLOW_FALLBACK)


class PathArgument(click.Path):
    """Parse a path; an empty text is an error, not the folder that the command runs in."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


require_key_option = click.option(
    "--require-key",
    "keys",
    multiple=True,
    type=PathArgument(),
    help="Public key that must have signed a bundle. Repeatable: one of them.",
)
explain_option = click.option(
    "--explain", is_flag=True, help="Say what of a bundle runs here, and why, on stderr."
)
workspace_argument = click.argument("workspace", type=PathArgument())


class NumberOr(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """Parse a number, or one of a few words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.name = "|".join(("number", *words))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value in self.words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            words = " nor ".join(f'"{word}"' for word in self.words)
            self.fail(f"{value!r} is neither a number nor {words}", param, ctx)


class OneOf(click.Choice):  # type: ignore[type-arg]  # not generic before click 8.2
    """Parse one of a few values, which need not be texts."""

    def __init__(self, values: tuple[str | int, ...]) -> None:
        super().__init__([str(value) for value in values])
        self.values = {str(value): value for value in values}

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        return self.values[super().convert(str(value), param, ctx)]


class Bytes(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """Parse a number of bytes, such as 800000000, 800MB or 2GiB."""

    name = "bytes"
    units: ClassVar[dict[str, int]] = {
        **{"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
        **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?i?B|)", str(value))
        size = int(float(found[1]) * self.units.get(found[2], 0)) if found else 0
        if size < 1:
            self.fail(f"{value!r} is no number of bytes such as 800MB or 2GiB", param, ctx)
        return size


memory_option = option(
    "--max-memory",
    group="Rounding of weights",
    type=Bytes(),
    default=MAX_MEMORY,
    help="Memory that Hessians of weights may take at a time. [default: 2GiB]",
)


def struct_options(
    struct: type[msgspec.Struct], *, only: tuple[str, ...] | None = None
) -> Callable[[Command], Command]:
    """Give a command an option for each field of a struct, or for those in `only`.

    Name, type, choices, default and help are the field's, and whether it is required. An option
    that is not given is None, whatever the field's default, so that a recipe's value stays.
    """
    fields = [field for field in fields_of(struct) if only is None or field.name in only]

    def decorate(command: Command) -> Command:
        for field in reversed(fields):
            command = option_of(field)(command)
        return command

    return decorate


def option_of(field: FieldDescription) -> Callable[[Command], Command]:
    """Return the decorator that adds a field's option."""
    name, value = f"--{field.flag}", field.value
    common: dict[str, Any] = {
        "cls": GroupedOption,
        "group": field.group,
        "default": None,
        "help": help_text(field),
        "required": field.required,
        "shell_complete": completion.BY_FIELD.get(field.name),
    }
    if value.kind == "boolean":
        return click.option(f"{name}/--no-{field.flag}", field.name, **common)
    if value.kind == "list":
        common |= {"multiple": True, "callback": none_if_empty}
        (value,) = value.items
    return click.option(name, field.name, type=click_type(value), **common)


def click_type(value: ValueType) -> Any:
    """Return what Click converts a field's value with."""
    match value.kind:
        case "integer":
            limits = value.range
            return click.IntRange(limits.least, limits.most) if limits else int
        case "number":
            return float
        case "text":
            return str
        case "choice":
            return OneOf(tuple(choice for choice in value.choices if choice is not None))
        case "tuple":
            return tuple(click_type(item) for item in value.items)
        case "union":
            return NumberOr(tuple(str(word) for item in value.items for word in item.choices))
    raise TypeError(f"no option takes a {value.kind}")


def help_text(field: FieldDescription) -> str:
    """Return an option's help: what it is, whether it repeats, its default and range."""
    repeats = "Repeatable." if field.value.kind == "list" else ""
    limits = field.range.text if field.range and not field.value.range else ""  # else Click's
    facts = "; ".join(filter(None, (default_text(field), limits)))
    return " ".join(filter(None, (field.help, repeats, facts and f"[{facts}]")))


def default_text(field: FieldDescription) -> str:
    """Return how help says a field's default; nothing for None, which its description explains."""
    value = field.default
    if field.required or value is None or value == ():
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return f"default: {value}"


def none_if_empty(
    context: click.Context, parameter: click.Parameter, value: tuple[Any, ...]
) -> list[Any] | None:
    return list(value) or None
