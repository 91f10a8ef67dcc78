"""Define what `generator.json` says of a PAR."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...runtime.raster_spec import RasterSpec
from ...runtime.spec import AxisSizes, Count, Defaults


def generation_order(side: int, group: int) -> NDArray[np.int64]:
    """The raster cells of a map of `side` * `side` tokens in the order of their generation.

    The map has s * s = `group` regions of m * m cells. Token ((i m + j) s + a) s + b is in row
    a m + i and column b m + j: `group` neighbours of the order are the same cell of all regions.
    """
    regions = math.isqrt(group)
    cells = np.arange(side * side).reshape(regions, side // regions, regions, side // regions)
    order: NDArray[np.int64] = cells.transpose(1, 3, 0, 2).reshape(-1)
    return order


class ParSpec(RasterSpec, frozen=True, kw_only=True, tag_field="family", tag="par"):
    """`generator.json` of a PAR.

    Behind the first `group` tokens so many are predicted at once. The step takes rows of one table:
    the vocabulary, the classes with the null class, `group` - 1 special tokens.
    """

    group: Count
    defaults: Defaults

    def __post_init__(self) -> None:
        RasterSpec.__post_init__(self)
        regions = math.isqrt(self.group)
        if self.group < 2 or regions**2 != self.group or self.side % regions:
            raise ValueError(f"{self.group} tokens at once are not one of each region of the map")

    @property
    def steps(self) -> int:
        """Steps of one batch: `group` of one token, the others of `group` tokens."""
        return self.group + self.length // self.group - 1

    @property
    def order(self) -> NDArray[np.int64]:
        """The raster cell of each token."""
        return generation_order(self.side, self.group)

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the tokens of a step and those cached before it; most steps take a group."""
        last = self.length - self.group
        return self.map_sizes | {"n": (1, self.group, self.group), "past": (0, last, last)}

    @property
    def special(self) -> NDArray[np.int64]:
        """Return the special tokens that follow the first `group` tokens, [group - 1]."""
        return self.vocab_size + self.num_classes + 1 + np.arange(self.group - 1)
