"""Read recipes as they are written: TOML files, and the presets that this package ships."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import msgspec

from ..errors import RecipeError, nearest
from ..workspace.files import UNDECODABLE, said
from ..workspace.schemas import schema_problem
from .quantize import with_implied
from .recipe import Recipe

RECIPE_SCHEMA = "arvg-trt/recipe/v1"
PRESETS = Path(__file__).parent / "presets"
KEYS = "`arvg-trt recipes --keys` lists all"
UNKNOWN = re.compile(r"unknown field `([^`]+)`")


def preset_names() -> list[str]:
    """Return the names of all presets, in order."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of a TOML file, or of the preset of that name.

    Raises:
        RecipeError: neither; names the nearest presets. Or it is an ONNX file.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".onnx":
        raise RecipeError(
            "is a graph, and no recipe",
            where=fspath(name),
            do=f"arvg-trt export onnx WORKSPACE --graph {fspath(name)}; a recipe names it by "
            'model = "onnx" and graphs',
        )
    if path.is_file():
        return path
    preset = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if preset.is_file():
        return preset
    raise RecipeError(
        "no such file, and no preset of that name",
        where=fspath(name),
        do=f"nearest: {nearest(path.stem, preset_names())}; all: arvg-trt recipes",
    )


def load_recipe(name: str | PathLike[str]) -> Recipe:
    """Read and check a recipe; errors name the file and the key."""
    path = find_recipe(name)
    try:
        written = msgspec.toml.decode(path.read_bytes())
        problem = schema_problem(written.get("schema", RECIPE_SCHEMA), RECIPE_SCHEMA)
        if problem is not None:
            raise RecipeError(problem.what, where=str(path), do=problem.do or KEYS)
        if isinstance(table := written.get("quantize"), dict):
            written["quantize"] = with_implied(table)
        return msgspec.convert(written, Recipe, strict=True)
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8 text", where=str(path)) from error
    except UNDECODABLE as error:
        raise RecipeError(said(error), where=str(path), do=keys_like(said(error))) from error


def keys_like(text: str) -> str:
    """Return where keys are listed, behind those most like one that a decoder does not know."""
    unknown = UNKNOWN.search(text)
    if unknown is None:
        return KEYS
    from .reference import TABLES

    known = {field.name for table in TABLES.values() for field in msgspec.structs.fields(table)}
    return f"nearest: {nearest(unknown[1], sorted(known))}; {KEYS}"


def encode_recipe(recipe: Recipe) -> str:
    """Return a recipe as a TOML file that reads back as it; what is at its default is left out.

    Numbers, texts, truth values and lists of them are written alike in JSON and TOML.
    """
    plain, tables = {}, []
    for key, value in without_defaults(recipe).items():
        if isinstance(value, dict):
            tables.append((f"[{key}]", value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [(f"[[{key}]]", row) for row in value]
        else:
            plain[key] = value
    lines = [f"{key} = {encode_value(value)}" for key, value in plain.items()]
    for head, values in tables:
        lines += ["", head, *(f"{key} = {encode_value(v)}" for key, v in values.items())]
    return "\n".join(lines) + "\n"


def without_defaults(options: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of options that differ from their defaults, those without one too."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, msgspec.Struct):
            if inner := without_defaults(value):
                found[field.name] = inner
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            found[field.name] = [without_defaults(each) for each in value]
        elif field.required or field.name == "schema" or value != field.default:
            found[field.name] = msgspec.to_builtins(value)
    return found


def encode_value(value: Any) -> str:
    """Return a value as JSON and TOML both write it; TOML wants the delete character escaped."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def without_folders(recipe: Recipe) -> Recipe:
    """Return a recipe whose absolute paths are names alone: they say where a machine keeps files.

    Raises:
        msgspec.ValidationError: a name alone is no value of a field.
    """
    return msgspec.convert(names_alone(msgspec.to_builtins(recipe)), Recipe)


def names_alone(value: Any) -> Any:
    """Return a value of JSON in which every absolute path is the name at its end."""
    if isinstance(value, dict):
        return {key: names_alone(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [names_alone(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
