"""Read recipes as they are written: TOML files, and the presets that this package ships."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import msgspec

from ..errors import RecipeError, nearest
from ..workspace.files import UNDECODABLE, said
from .quantize import with_implied
from .recipe import Recipe

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets, in order."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of a TOML file, or of the preset of that name.

    Raises:
        RecipeError: neither; names the nearest presets.
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if preset.is_file():
        return preset
    raise RecipeError(
        "no such recipe", where=fspath(name), do=f"presets: {nearest(path.stem, preset_names())}"
    )


def load_recipe(name: str | PathLike[str]) -> Recipe:
    """Read and check a recipe; errors name the file and the key."""
    path = find_recipe(name)
    try:
        written = msgspec.toml.decode(path.read_bytes())
        if isinstance(table := written.get("quantize"), dict):
            written["quantize"] = with_implied(table)
        return msgspec.convert(written, Recipe, strict=True)
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8 text", where=str(path)) from error
    except UNDECODABLE as error:
        raise RecipeError(said(error), where=str(path), do="see docs/recipes.md") from error
