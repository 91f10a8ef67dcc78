"""Find the checkpoint that a workspace was exported from, so that PyTorch can run it again.

A workspace names the model and the digests of its checkpoint's files, not where they lie. They are
looked for where the workspace's recipe says, then among the weights that ship with the package; and
only files of those digests are taken. Nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ArvgError
from ...families.shared.job import CONFIGS
from ...families.variants import find_model, shipped_checkpoint
from ...workspace.files import sha256_file
from ...workspace.manifest import Manifest

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """Hold the model's name and the files of its checkpoint, as the export was made of them."""

    model: str
    spec: str
    paths: tuple[Path, ...]
    weights: str | None


def find_checkpoint(exported: Manifest, recipe: Recipe | None) -> FoundCheckpoint | str:
    """Return the checkpoint of an export, or in words why it is not at hand."""
    from ...export.checkpoint.resolve import resolve_checkpoint

    if "graphs" in exported.options:
        return "graphs of your own have no checkpoint"
    name = str(exported.options.get("model", ""))
    try:
        entry = find_model(name)
        specs = [recipe.checkpoint] if recipe is not None and recipe.model == name else []
        shipped = shipped_or_none(name)
    except ArvgError as error:
        return str(error)
    for spec in (*specs, shipped):
        if not spec:
            continue
        try:
            paths = resolve_checkpoint(
                spec, entry.files, entry.elsewhere, entry.published, cached=True
            )
        except ArvgError:
            continue
        if same_files(exported, paths):
            weights = exported.options.get("weights")
            return FoundCheckpoint(name, spec, tuple(paths), str(weights) if weights else None)
    return "its checkpoint is not where the workspace's recipe or the package would have it"


def shipped_or_none(name: str) -> str | None:
    """Return where the weights of a model lie in the package; None if they do not ship with it."""
    try:
        return str(shipped_checkpoint(find_model(name)))
    except ArvgError:
        return None


def same_files(exported: Manifest, paths: list[Path]) -> bool:
    """Return whether these are the files that an export was made of, by their digests."""
    beside = [path for each in CONFIGS if (path := paths[0].parent / each).is_file()]
    return all(
        path.name in exported.inputs and exported.inputs[path.name] == sha256_file(path)
        for path in (*paths, *beside)
    )
