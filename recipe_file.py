"""Recipes as they are written: TOML files, and the presets in `recipes/`."""

from __future__ import annotations

import difflib
from pathlib import Path

import msgspec

from .errors import RecipeError
from .recipe import Recipe

PRESETS = Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """A TOML file, or the name of a preset.

    Raises:
        RecipeError: neither; names the nearest presets.
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if preset.is_file():
        return preset
    known = sorted(p.stem for p in PRESETS.glob("*.toml"))
    near = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.3)
    raise RecipeError("no such recipe", where=name, do=f"presets: {', '.join(near or known)}")


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe; errors name the file and the key."""
    path = find_recipe(name)
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise RecipeError(str(error), where=str(path), do="see docs/recipes.md") from error
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8 text", where=str(path)) from error
