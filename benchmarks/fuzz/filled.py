"""Make a value of a struct with every field, so that mutations reach those that are optional."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect


def filled(kind: Any) -> Any:
    """Return what JSON holds of a value of a type in which nothing is left out.

    Numbers are the least that are allowed from 1 on, texts "a", and collections hold one value.
    """
    return value_of(inspect.type_info(kind))


def value_of(kind: inspect.Type) -> Any:
    """Return a value of a type that `msgspec.inspect` describes."""
    match kind:
        case inspect.StructType() | inspect.DataclassType():
            return {field.encode_name: value_of(field.type) for field in kind.fields}
        case inspect.UnionType():
            found = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
            return value_of(found[0])
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.DictType():
            return {value_of(kind.key_type): value_of(kind.value_type)}
        case inspect.TupleType():
            return [value_of(each) for each in kind.item_types]
        case inspect.VarTupleType() | inspect.ListType() | inspect.FrozenSetType():
            return [value_of(kind.item_type)]
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            least = max(1, kind.ge or 0)
            most = min(kind.le or least, least)
            return float(most) if isinstance(kind, inspect.FloatType) else int(most)
        case inspect.StrType() | inspect.AnyType():
            return "a"
        case inspect.NoneType():
            return None
    raise TypeError(f"no value is known of {kind}")


def fitted(kind: type[msgspec.Struct], **fixed: Any) -> bytes:
    """Return the JSON of a struct with every field; `fixed` has those that depend on others."""
    value = filled(kind) | fixed
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
