"""Write protobuf messages in their text format, without the classes of their definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


class EnumName(str):
    """The name of an enumeration's value, which is written without quotes."""

    __slots__ = ()


def map_entries(entries: Mapping[str, str]) -> tuple[Message, ...]:
    return tuple({"key": key, "value": value} for key, value in entries.items())


def text_proto(message: Message, indent: str = "") -> str:
    """Return a message in protobuf's text format, a field a line in the order given.

    Tuples of messages are repeated fields, tuples of numbers lists in one line.
    """
    lines: list[str] = []
    for name, value in message.items():
        if isinstance(value, tuple) and not all(isinstance(v, int) for v in value):
            blocks: Sequence[Any] = value
        else:
            blocks = (value,)
        for block in blocks:
            if isinstance(block, Mapping):
                inner = text_proto(block, indent + "  ")
                lines += [f"{indent}{name} {{", *([inner.rstrip("\n")] * bool(inner)), indent + "}"]
            else:
                lines.append(f"{indent}{name}: {literal(block)}")
    return "".join(f"{line}\n" for line in lines)


def literal(value: object) -> str:
    """Return a number, a list of numbers, an enumeration's name, or a text in quotes."""
    if isinstance(value, tuple):
        return f"[ {', '.join(map(str, value))} ]" if value else "[ ]"
    if isinstance(value, EnumName) or not isinstance(value, str):
        return str(value)
    quoted = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}"
        for byte in value.encode()
    )
    return f'"{quoted}"'
