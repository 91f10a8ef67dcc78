"""What `generator.json` says of a RAR."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .spec import Count, Defaults, KvType


class RarDefaults(Defaults, frozen=True, kw_only=True):
    """With the power of the guidance's schedule."""

    cfg_power: float


class RarSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="rar"):
    """`generator.json` of a RAR: what the schedule needs to know beside the graphs.

    An image is a map of `side` * `side` tokens. The null class is `num_classes`. The step takes
    rows of one table: the vocabulary, a mask token, the classes with the null class, cls. `kv_type`
    is that of the caches.
    """

    schema: Literal["arvg-trt/generator/v1"] = "arvg-trt/generator/v1"
    side: Count
    num_classes: Count
    vocab_size: Count
    depth: Count
    width: Count
    heads: Count
    head_dim: Count
    image_size: Count
    defaults: RarDefaults
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
        """Steps of one batch: its tokens."""
        return self.length

    def prefix(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels [rows] -> what begins the sequence, [rows, 2]: cls and the class."""
        classes = labels + self.vocab_size + 1
        cls = np.full_like(labels, self.vocab_size + self.num_classes + 2)
        return np.stack([cls, classes], axis=1)
