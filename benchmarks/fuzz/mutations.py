"""Change the bytes of a file by a seed: values of what it holds, or any bytes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import onnx

# Values that a file is not expected to have, for any key.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 99, 2**31, 2**63, -(2**63), 10**20, 1e-300, 1e30, 0.5, 1e400),
    *("", " ", "x", "../x", "/", "\x00", "\ud7ff", "n" * 300, "-1", "1e9", "nan", "float32"),
    *([], {}, [[]], [None], [-1, 0], {"a": {}}, [1] * 50),
)
SHAPES = ("()", "(0,)", "(4, 8)", "(8, 4)", "(-1, 8)", "(1000000000000, 0)", "(4, 99999999999)")
BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B)


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return changed bytes of a file: values of JSON or of a safetensors header, or any bytes."""
    if name.endswith(".json") and rng.random() < 0.6:
        return changed_json(data, rng)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return changed_header(data, rng)
    if name.endswith(".npz") and rng.random() < 0.6:
        return changed_member(data, rng)
    if name.endswith(".onnx") and rng.random() < 0.7:
        return changed_graph(data, rng)
    if name.endswith(".tar") and rng.random() < 0.7:
        from .bundle_mutations import (
            changed_bundle,  # it changes JSON and bytes as this module does
        )

        return changed_bundle(data, rng)
    return changed_bytes(data, rng)


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or remove bytes, in one to eight changes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8) if rng.random() < 0.5 else 1):
        at = rng.randrange(len(found)) if found else 0
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0 if found:
                found[at] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[at] = rng.choice(BYTES)
            case 2:
                found[at : at + length] = b""
            case 3:
                found[at:at] = bytes(rng.choice(BYTES) for _ in range(length))
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                del found[at:]
            case _:
                found[at : at + 8] = rng.randbytes(8)
    return bytes(found)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat a value at any depth, or nest one without end."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in list(items):
            places.append((value, key))
            if isinstance(child, dict | list):
                collect(child)

    collect(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = rng.choice(places)
        if isinstance(holder, list) and not key < len(holder):
            continue
        match rng.randrange(5):
            case 0 if isinstance(holder, dict) and key in holder:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("unknown", "", "sites", "schema"))] = rng.choice(NASTY)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = rng.choice(NASTY)
    text = json.dumps(tree)
    if rng.random() < 0.03:
        text = text.replace("null", "[" * 20_000 + "]" * 20_000, 1)
    return text.encode("utf-8", "surrogatepass")


def changed_header(data: bytes, rng: random.Random) -> bytes:
    """Change values in the JSON header of a safetensors file, with its right length."""
    length = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else rng.choice((0, 2**63, len(header) + 1))
    return said.to_bytes(8, "little") + header + data[8 + length :]


def changed_member(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in the header of an array of a `.npz`, with right check sums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice(list(members))
    held = members[chosen]
    header = 10 + int.from_bytes(held[8:10], "little")
    if rng.random() < 0.5:
        shape = f"{rng.choice(SHAPES)}, }}"
        text = re.sub(rb"'shape': \\(.*?\\), }", f"'shape': {shape}".encode(), held[:header])
        text = text[:8] + (len(text) - 10).to_bytes(2, "little") + text[10:]
    else:
        text = changed_bytes(held[:header], rng)
    members[chosen] = text + held[header:]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chosen.compress_type) as archive:
        for info, member in members.items():
            archive.writestr(zipfile.ZipInfo(info.filename), member, info.compress_type)
    return out.getvalue()


def changed_graph(data: bytes, rng: random.Random) -> bytes:
    """Change one to three fields of an ONNX model, at any depth."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message: Any = model
        while True:
            fields = [(f, v) for f, v in message.ListFields()]
            if not fields:
                break
            field, value = rng.choice(fields)
            repeated = isinstance(value, Sequence) and not isinstance(value, str | bytes)
            if repeated and rng.random() < 0.25:
                at = rng.randrange(len(value))
                if rng.random() < 0.5:
                    del value[at]
                else:
                    value.extend([value[at]])
                break
            at = rng.randrange(len(value)) if repeated else 0
            inner = value[at] if repeated else value
            if hasattr(inner, "ListFields"):
                message = inner
                continue
            changed = other_value(inner, rng)
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                if repeated:
                    value[at] = changed
                else:
                    setattr(message, field.name, changed)
            break
    changed_model: bytes = model.SerializeToString()
    return changed_model


def other_value(value: Any, rng: random.Random) -> Any:
    """Return a value of the same kind that a field is not expected to have."""
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value + value, b"\xff\x00"))
    if isinstance(value, str):
        return rng.choice(("", "x", "fc1.weight", "a", "y", "Loop", "Conv", "com.microsoft"))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, math.nan, math.inf))
    return rng.choice((0, 1, -1, 2, 3, 7, 10, 16, 99, 2**31 - 1, 2**62, -(2**63)))
