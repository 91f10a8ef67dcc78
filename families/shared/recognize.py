"""Tell which models the tensors of a checkpoint are of, by their names and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ExportError
from ...runtime.families import built_in_families
from ...workspace.stage import SilentReporter
from .job import ExportJob

if TYPE_CHECKING:
    from ..base import Exporter


@contextmanager
def refused_by_content(job: ExportJob, own: str) -> Iterator[None]:
    """Refuse a checkpoint that does not fit by what it holds, if that is known.

    `own` is what the family's tensors are, in words. A checkpoint that has them, of another size
    say, is refused as the block refuses it.

    Raises:
        ExportError: the block did.
    """
    try:
        yield
    except ExportError as error:
        found = recognize(job)
        if not found or own in found.values():
            raise
        raise ExportError(
            f"holds {' and '.join(found.values())}, not {own}",
            where=job.spec,
            do=f"export it as {next(iter(found))}, or {complete(job)}",
        ) from error.__cause__


def complete(job: ExportJob) -> str:
    """Return which files a complete checkpoint of the job's model has, as an advice."""
    names = job.entry.files[0] if job.entry.files else ()
    files = " and ".join(Path(name).name for name in names)
    return f"name a folder with {files}" if files else f"name a checkpoint of {job.entry.name}"


def recognize(job: ExportJob) -> dict[str, str]:
    """Return the models whose tensors a checkpoint has, and what these are; values are not read.

    The names are what `export` takes, transformers first. Nothing is returned for a tokenizer
    beside tensors of no model: these may be the right transformer, with a key too few.
    """
    from ...export.checkpoint.strict import split_parts
    from .tokenizer_export import TokenizerExporter

    outline = replace(job, shapes_only=True, weights=None, reporter=SilentReporter())
    try:
        tensors = outline.read()
    except ExportError:
        return {}
    families = [f for f in built_in_families() if f.source == "checkpoint"]
    found: dict[str, str] = {}
    unexplained = bool(split_parts(tensors)[0])
    for family in sorted(families, key=lambda f: not f.generates):
        exporter: Exporter = family.load_exporter()
        for model in reversed(family.models):  # without a size first; a size tells what keys do not
            try:
                config = exporter.load_part(replace(outline, entry=model), tensors)
            except ExportError:
                continue
            same = (each.name for each in family.variants if each.config == config)
            found[next(same, model.name)] = exporter.part
            unexplained &= isinstance(exporter, TokenizerExporter)  # others load every tensor
            break
    return {} if unexplained else found
