"""Write what a recipe may say as Markdown tables and as a JSON schema, from the structs."""

from __future__ import annotations

from typing import Any

import msgspec

from .build import BuildOptions
from .calibrate import CalibrateOptions
from .descriptions import FieldDescription, Range, ValueType, fields_of
from .quantize import QuantizeOptions
from .recipe import Recipe
from .validate import ValidateOptions

TABLES: dict[str, type[msgspec.Struct]] = {
    "": Recipe,
    "[calibrate]": CalibrateOptions,
    "[quantize]": QuantizeOptions,
    "[[build]]": BuildOptions,
    "[validate]": ValidateOptions,
}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, which editors complete and check TOML files with."""
    return msgspec.json.schema(Recipe)


def markdown() -> str:
    """Return a table of keys for each table of a recipe."""
    return "\n".join(f"{heading(name)}\n\n{key_table(struct)}" for name, struct in TABLES.items())


def key_rows() -> list[dict[str, Any]]:
    """Return what the tables of keys say, a row for each key with its table, for programs."""
    return [
        {
            "table": name,
            "key": field.name,
            "values": type_text(field.value, field.range).replace("`", ""),
            "required": field.required,
            "default": field.default,
            "help": field.help,
        }
        for name, struct in TABLES.items()
        for field in fields_of(struct)
        if not field.value.is_table
    ]


def heading(name: str) -> str:
    return f"### `{name}`" if name else "### At the top"


def key_table(struct: type[msgspec.Struct]) -> str:
    rows = ["| key | values | default | |", "| --- | --- | --- | --- |"]
    for field in fields_of(struct):
        if field.value.is_table:  # it has a section of its own
            continue
        values, text = type_text(field.value, field.range), field.help.replace("|", "\\|")
        rows.append(f"| {' | '.join((f'`{field.name}`', values, default_text(field), text))} |")
    return "\n".join(rows) + "\n"


def type_text(value: ValueType, limits: Range | None = None) -> str:
    """Return a field's type in the words of TOML, with the limits of its numbers."""
    items = [type_text(item, limits) for item in value.items]
    match value.kind:
        case "boolean":
            return "true, false"
        case "choice":
            return ", ".join(toml(choice) for choice in value.choices)
        case "list":
            return f"list of {items[0]}"
        case "tuple":
            return f"[{', '.join(items)}]"
        case "union":
            return ", ".join(items)
        case "integer" | "number" if limits:
            return f"{value.kind} ({limits.text})"
    return value.kind


def default_text(field: FieldDescription) -> str:
    if field.required:
        return "required"
    return "" if field.default is None else toml(field.default)


def toml(value: Any) -> str:
    """Return a value in the syntax of TOML, marked as code."""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{msgspec.json.encode(value).decode()}`"
