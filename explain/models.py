"""List the models that are known by name, and where their checkpoints are."""

from __future__ import annotations

import msgspec

from ..families.variants import all_variants, checkpoint_text
from ..runtime.family import HubFile


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is known by name; ``files`` are the sets that make a complete checkpoint.

    ``published`` are those that are fetched, ``download_bytes`` in all where every size is known.
    """

    name: str
    family: str
    parameters: int
    graphs: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    checkpoint: str
    published: tuple[HubFile, ...] = ()
    download_bytes: int | None = None


def model_rows() -> list[ModelRow]:
    """Return the models that are known by name, and where their checkpoints are."""
    return [
        ModelRow(
            name=entry.name,
            family=entry.family,
            parameters=entry.parameters,
            graphs=entry.graphs,
            files=entry.files,
            checkpoint=checkpoint_text(entry),
            published=entry.published,
            download_bytes=entry.download_bytes,
        )
        for entry in all_variants()
    ]
