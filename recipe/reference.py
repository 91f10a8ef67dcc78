"""Write what a recipe may say as Markdown tables and as a JSON schema, from the structs."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from .options import BuildOptions, CalibrateOptions, Recipe, ValidateOptions
from .quantize import QuantizeOptions

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


def heading(name: str) -> str:
    return f"### `{name}`" if name else "### At the top"


def key_table(struct: type[msgspec.Struct]) -> str:
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    rows = ["| key | values | default | |", "| --- | --- | --- | --- |"]
    for field in described.fields:
        kind, text = field.type, ""
        if isinstance(kind, inspect.Metadata):
            text, kind = (kind.extra_json_schema or {}).get("description", ""), kind.type
        if is_table(kind):
            continue
        cells = (f"`{field.name}`", type_text(kind), default_text(field), text.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def is_table(kind: inspect.Type) -> bool:
    """Return whether a key holds a table, which has a section of its own."""
    item = kind.item_type if isinstance(kind, inspect.VarTupleType) else kind
    return isinstance(item, inspect.StructType)


def type_text(kind: inspect.Type) -> str:
    """Return a field's type in the words of TOML."""
    match kind:
        case inspect.BoolType():
            return "true, false"
        case inspect.IntType():
            return "integer"
        case inspect.FloatType():
            return "number"
        case inspect.StrType():
            return "text"
        case inspect.LiteralType():
            return ", ".join(toml(value) for value in kind.values)
        case inspect.VarTupleType():
            return f"list of {type_text(kind.item_type)}"
        case inspect.TupleType():
            return f"[{', '.join(type_text(item) for item in kind.item_types)}]"
        case inspect.UnionType():
            kinds = [k for k in kind.types if not isinstance(k, inspect.NoneType)]
            return ", ".join(type_text(k) for k in kinds)
    raise TypeError(f"a recipe has no {kind}")


def default_text(field: inspect.Field) -> str:
    if field.required:
        return "required"
    return "" if field.default is None else toml(field.default)


def toml(value: Any) -> str:
    """Return a value in the syntax of TOML, marked as code."""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{msgspec.json.encode(value).decode()}`"
