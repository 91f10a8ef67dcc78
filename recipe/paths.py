"""Say which files and folders a recipe names, and refuse one whose files are not there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import ArvgError, CalibrationError, ExportError, RecipeError
from .quantize import machine_file
from .recipe import Recipe

CHECKPOINT = "checkpoint"
# Keys whose files are ONNX graphs, which may have their weights in files beside them.
GRAPH_KEYS = ("graphs", "[validate] features", "[validate] lpips", "[validate] dists")
NOUNS = {"images": "folder", "samples_from": "file or folder"}  # of keys that take no file


def named_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys that name files or folders, with what each names.

    A checkpoint may be an id of the Hugging Face Hub all the same.
    """
    calibrate, quantize, validate = recipe.calibrate, recipe.quantize, recipe.validate
    yield from (("graphs", graph) for graph in recipe.graphs)
    named = {
        CHECKPOINT: recipe.checkpoint,
        "[calibrate] images": calibrate.images,
        "[calibrate] feeds": calibrate.feeds,
        "[calibrate] samples_from": calibrate.samples_from,
        "[quantize] plan": quantize.plan,
        "[quantize] plan_for": quantize.plan_for if machine_file(quantize.plan_for) else None,
        "[validate] images": validate.images,
        "[validate] feeds": validate.feeds,
        "[validate] features": validate.features,
        "[validate] lpips": validate.lpips,
        "[validate] dists": validate.dists,
    }
    for key, path in named.items():
        if path is not None and path.split(":")[0] != "skimage":
            yield key, path


def require_paths(
    recipe: Recipe,
    name: str | os.PathLike[str],
    table: str = "",
    replaced: Collection[str] = (),
) -> None:
    """Check that what the recipe `name` names is there, but the checkpoint, which may be fetched.

    With a `table`, such as ``[calibrate]``, its keys alone are checked, but those `replaced`.

    Raises:
        ArvgError: of the kind of the stage that reads it; names the recipe, the key and the path.
    """
    for key, path in named_paths(recipe):
        counts = key.startswith(table) and key != CHECKPOINT and key.split()[-1] not in replaced
        if counts and not os.path.exists(path):
            raise error_of(key)(
                f"{key} names {path}: no such {NOUNS.get(key.split()[-1], 'file')}",
                where=os.fspath(name),
                do=advice(path, Path(name).parent),
            )


def error_of(key: str) -> type[ArvgError]:
    """Return the kind of error that the stage which reads a key raises."""
    if key == "graphs":
        return ExportError
    return RecipeError if key.startswith("[quantize]") else CalibrationError


def advice(path: str, folder: Path) -> str:
    """Return what to do about a path that is not there, of a recipe in a folder."""
    if os.path.isabs(path):
        return "check the path"
    relative = "paths in a recipe are relative to the folder that the command runs in"
    if os.path.exists(folder / path):
        return f"{relative}: run it in {folder}, where the file is"
    return f"{relative}, {Path.cwd()}"
