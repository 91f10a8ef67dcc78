"""Say what a run would fetch of a checkpoint, without fetching it."""

from __future__ import annotations

from typing import NamedTuple

from ..families.variants import find_model
from ..recipe.recipe import Recipe
from ..runtime.families import find_family
from .checkpoint import check_checkpoint


class Fetched(NamedTuple):
    """Name the files that an export would fetch, their bytes if known, and if the Hub has them."""

    files: tuple[str, ...] = ()
    bytes: int | None = None
    checked: bool | None = None


NOTHING = Fetched()


def must_fetch(recipe: Recipe) -> bool:
    """Return whether a checkpoint is on the Hub and not in its cache on this machine.

    Raises:
        ExportError: a file or folder that is not there, not complete or of another model, or one
            of the cache that is not as published.
    """
    from ..export.checkpoint.hub import NotCached

    if find_family(find_model(recipe.model).family).source == "graphs":
        return False
    try:
        check_checkpoint(recipe)
    except NotCached:
        return True
    return False


def published_files(recipe: Recipe) -> Fetched:
    """Return the files of a checkpoint on the Hub: those that are known, else its id.

    Raises:
        ExportError: the Hub answers, and does not have them or gives no access.
    """
    from ..export.checkpoint.hub import check_repository

    entry, spec = find_model(recipe.model), str(recipe.checkpoint)
    checked = check_repository(spec, entry.files, entry.elsewhere, entry.published)
    if entry.published and entry.published[0].repo == recipe.checkpoint:
        names = tuple(f"{each.repo}/{each.name}" for each in entry.published)
        return Fetched(names, entry.download_bytes, checked)
    return Fetched((spec,), None, checked)
