"""What `generator.json` says of a PAR."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .spec import Count, Defaults, KvType


def generation_order(side: int, group: int) -> NDArray[np.int64]:
    """The raster cells of a map of `side` * `side` tokens in the order of their generation.

    The map has s * s = `group` regions of m * m cells. Token ((i m + j) s + a) s + b is in row
    a m + i and column b m + j: `group` neighbours of the order are the same cell of all regions.
    """
    regions = math.isqrt(group)
    cells = np.arange(side * side).reshape(regions, side // regions, regions, side // regions)
    return cells.transpose(1, 3, 0, 2).reshape(-1)


class ParSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="par"):
    """`generator.json` of a PAR: what the schedule needs to know beside the graphs.

    An image is a map of `side` * `side` tokens, of which `group` at once are predicted behind the
    first `group`. The null class is `num_classes`. The step takes rows of one table: the
    vocabulary, the classes with the null class, `group` - 1 special tokens. `kv_type` is that of
    the caches.
    """

    schema: Literal["arvg-trt/generator/v1"] = "arvg-trt/generator/v1"
    side: Count
    group: Count
    num_classes: Count
    vocab_size: Count
    depth: Count
    width: Count
    heads: Count
    head_dim: Count
    image_size: Count
    defaults: Defaults
    kv_type: KvType = "float32"

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.side * self.side

    @property
    def static_batch(self) -> None:
        """Its graphs take any number of images."""
        return None

    @property
    def steps(self) -> int:
        """Steps of one batch: `group` of one token, the others of `group` tokens."""
        return self.group + self.length // self.group - 1

    @property
    def order(self) -> NDArray[np.int64]:
        """The raster cell of each token."""
        return generation_order(self.side, self.group)

    def first(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels [rows] -> what begins the sequence, [rows, 1]."""
        return labels[:, None] + self.vocab_size

    @property
    def special(self) -> NDArray[np.int64]:
        """What follows the first `group` tokens, [group - 1]."""
        return self.vocab_size + self.num_classes + 1 + np.arange(self.group - 1)
