"""Describe the fields of options once: for the commands, docs, JSON schema and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import msgspec
from msgspec import inspect

Kind = Literal["boolean", "integer", "number", "text", "choice", "union", "list", "tuple", "table"]
SLIP = 10**6
Groups = dict[str, tuple[str, ...]]
_SIMPLE: dict[type[inspect.Type], Kind] = {
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "text",
    inspect.StructType: "table",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Hold the limits of a number, and the values beyond them that are allowed all the same."""

    least: int
    most: int | None = None
    besides: tuple[int, ...] = ()

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a value, as the end of a sentence; None if nothing is."""
        if value in self.besides:
            return None
        most = math.inf if self.most is None else self.most
        if self.besides and not self.least <= value <= most:
            return f"must be {self.text}, got {value}"
        if not value >= self.least:
            return f"must be at least {self.least:,}, got {value}"
        if not value <= most:
            return f"must be at most {most:,}, got {value:.4g}"
        return None

    @property
    def text(self) -> str:
        """The range in words, without an upper limit that only catches slips."""
        if self.most is None or self.most >= SLIP:
            return f"at least {self.least:,}"
        return ", or ".join((f"{self.least:,} to {self.most:,}", *map(str, self.besides)))

    @property
    def schema(self) -> dict[str, Any]:
        """The range in the words of JSON schema."""
        if self.besides and self.most is not None:
            # None is of no harm: whether it may be given, the type says.
            return {"enum": [*range(self.least, self.most + 1), *self.besides, None]}
        limits = {"minimum": self.least, "maximum": self.most}
        return {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True, slots=True)
class ValueType:
    """Hold what values a field takes; `items` are those of a list, a tuple or a union."""

    kind: Kind
    choices: tuple[str | int | None, ...] = ()
    items: tuple[ValueType, ...] = ()
    range: Range | None = None

    @property
    def is_table(self) -> bool:
        """Return whether a recipe gives the value a table, or a list of tables."""
        return self.kind == "table" or any(item.kind == "table" for item in self.items)


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """Hold what a field of an options struct is called, takes and means.

    `flag` is the name of the command line's option, `group` the heading that help puts it under.
    `require_in_range` checks `range`. Where it is the type's own, `value` has it too, and
    converting a value checks it already.
    """

    name: str
    flag: str
    value: ValueType
    range: Range | None
    required: bool
    default: Any
    help: str
    group: str


def says(text: str, limits: Range | None = None, *, flag: str | None = None) -> msgspec.Meta:
    """Describe a field where its struct declares it.

    `flag` is the option's name where one of several values is given at a time.
    """
    extra = {"flag": flag, "range": limits}
    return msgspec.Meta(
        description=text,
        extra={key: value for key, value in extra.items() if value},
        extra_json_schema=limits.schema if limits else None,
    )


@cache
def fields_of(struct: type[msgspec.Struct]) -> tuple[FieldDescription, ...]:
    """Return the descriptions of a struct's fields, in order.

    Its class variable GROUPS has the names of the fields under each heading of help.
    """
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    groups: Groups = getattr(struct, "GROUPS", {})
    group_of = {name: group for group, names in groups.items() for name in names}
    return tuple(described_field(f, group_of.get(f.name, "")) for f in described.fields)


def described_field(field: inspect.Field, group: str) -> FieldDescription:
    kind, text, extra = field.type, "", dict[str, Any]()
    if isinstance(kind, inspect.Metadata):
        text = (kind.extra_json_schema or {}).get("description", "")
        extra, kind = kind.extra or {}, kind.type
    value = value_type(kind)
    default = None if field.default is msgspec.NODEFAULT else field.default
    return FieldDescription(
        name=field.name,
        flag=extra.get("flag", field.name).replace("_", "-"),
        value=value,
        range=extra.get("range", value.range),
        required=field.required,
        default=default,
        help=text,
        group=group,
    )


def value_type(kind: inspect.Type) -> ValueType:
    """Return what values a type has; None is no value of its own.

    Raises:
        TypeError: options have no such type.
    """
    match kind:
        case inspect.Metadata():
            return value_type(kind.type)
        case inspect.IntType() | inspect.FloatType():
            most = None if kind.le is None else int(kind.le)
            limits = None if kind.ge is None else Range(int(kind.ge), most)
            return ValueType(_SIMPLE[type(kind)], range=limits)
        case inspect.LiteralType():
            return ValueType("choice", choices=kind.values)
        case inspect.VarTupleType():
            return ValueType("list", items=(value_type(kind.item_type),))
        case inspect.TupleType():
            return ValueType("tuple", items=tuple(value_type(item) for item in kind.item_types))
        case inspect.UnionType():
            items = [value_type(k) for k in kind.types if not isinstance(k, inspect.NoneType)]
            return items[0] if len(items) == 1 else ValueType("union", items=tuple(items))
    if type(kind) in _SIMPLE:
        return ValueType(_SIMPLE[type(kind)])
    raise TypeError(f"no option has the type {kind}")


def require_in_range(options: msgspec.Struct) -> None:
    """Check the numbers of options against the ranges that their fields declare.

    Raises:
        ValueError: one is outside; names the field.
    """
    for field in fields_of(type(options)):
        if field.range is None:
            continue
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and (problem := field.range.problem(value)):
            raise ValueError(f"{field.name} {problem}")
