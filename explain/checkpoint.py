"""Check that a checkpoint is of a recipe's model before anything is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..families.base import Exporter
from ..families.shared.job import ExportJob
from ..families.variants import find_model, shipped_checkpoint
from ..pipeline.export import require_one_size
from ..recipe.recipe import Recipe
from ..runtime.families import find_family
from ..samples.images import ImageSource
from ..workspace.stage import SilentReporter


def check_checkpoint(recipe: Recipe) -> None:
    """Check the files that a recipe names, or that lie in the Hub's cache; shipped ones fit.

    Names, shapes and small tensors are read, which is what tells a model and its size.

    Raises:
        ExportError: whatever the export refuses of them; not NaN or infinity in large tensors.
    """
    paths = checkpoint_files(recipe)
    if recipe.checkpoint is not None:
        check_files(recipe, paths)


def checkpoint_files(recipe: Recipe) -> list[Path]:
    """Return the files of a recipe's checkpoint that are on this machine.

    Raises:
        NotCached: they are on the Hub alone.
        ExportError: a file or folder that is not there or not complete, or one of the Hub's cache
            that is not as published.
    """
    from ..export.checkpoint.resolve import resolve_checkpoint

    entry = find_model(recipe.model)
    spec = recipe.checkpoint or shipped_checkpoint(entry)
    if entry.config is None:
        require_one_size(entry, find_family(entry.family).snapshots, Path(spec))
    found = (entry.files, entry.elsewhere, entry.published)
    return resolve_checkpoint(spec, *found, cached=True)


def check_files(recipe: Recipe, paths: Sequence[Path]) -> None:
    """Check that files have the tensors of the recipe's model.

    Raises:
        ExportError: as `check_checkpoint`.
    """
    from ..export.checkpoint.resolve import require_enough

    entry = find_model(recipe.model)
    exporter: Exporter = find_family(entry.family).load_exporter()
    job = ExportJob(
        entry=entry,
        spec=str(recipe.checkpoint),
        paths=tuple(paths),
        source=ImageSource(()),
        reporter=SilentReporter(),
        weights=recipe.weights,
        shapes_only=True,
    )
    exporter.check(job)
    require_enough(paths, recipe.model, entry.parameters)  # of a family that checks nothing
