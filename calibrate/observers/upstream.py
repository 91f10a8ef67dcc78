"""Keep what graphs without observers gave to later graphs, so that they run once.

A decoder is observed about twenty times while its scalings are chosen, always on what the same
encoder makes of the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 2**28
Outputs = dict[str, NDArray[np.generic]]


class UpstreamKey(NamedTuple):
    """Name a run of a graph: its folder, those that it feeds, and the samples in their batches."""

    export: str
    graph: str
    later: tuple[str, ...]
    samples: str
    files: tuple[str, ...]
    batch_size: int


@dataclass(slots=True)
class UpstreamOutputs:
    """Hold outputs by run, then by the first sample of each batch, up to `MOST_BYTES` in all."""

    kept: dict[UpstreamKey, Mapping[str, Outputs]] = field(default_factory=dict)
    size: int = 0

    def keep(self, key: UpstreamKey, outputs: Mapping[str, Outputs]) -> None:
        """Keep the outputs of a run, unless all would be larger than `MOST_BYTES`."""
        size = sum(array.nbytes for batch in outputs.values() for array in batch.values())
        if self.size + size <= MOST_BYTES:
            self.kept[key] = outputs
            self.size += size

    def find(self, key: UpstreamKey) -> Mapping[str, Outputs] | None:
        """Return the outputs of a run, or None if they are not kept."""
        return self.kept.get(key)
