"""Define what `generator.json` says of a RAR."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...runtime.raster_spec import RasterSpec
from ...runtime.spec import AxisSizes, Defaults

# Rows times positions whose modulations are made at once: as many as make the linears efficient,
# few enough that what they give stays small.
ROWS_AHEAD = 64


class RarDefaults(Defaults, frozen=True, kw_only=True):
    """With the power of the guidance's schedule."""

    cfg_power: float


class RarSpec(RasterSpec, frozen=True, kw_only=True, tag_field="family", tag="rar"):
    """`generator.json` of a RAR.

    The step takes rows of one table: the vocabulary, a mask token, the classes with the null class,
    cls.
    """

    defaults: RarDefaults

    @property
    def steps(self) -> int:
        """Steps of one batch: its tokens."""
        return self.length

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the tokens of a step and those cached before it, and what is modulated at once."""
        if graph == "condition":
            return {"n": (1, max(2, ROWS_AHEAD // (2 * max_batch)), ROWS_AHEAD)}
        return self.map_sizes | {"n": (1, 1, 2), "past": (0, self.length, self.length)}

    def prefix(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels [rows] -> what begins the sequence, [rows, 2]: cls and the class."""
        classes = labels + self.vocab_size + 1
        cls = np.full_like(labels, self.vocab_size + self.num_classes + 2)
        return np.stack([cls, classes], axis=1)
