"""Define what `generator.json` says of generators whose image is one map of tokens."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .spec import TEACHER_FORCED, AxisSizes, Count, KvScales, KvType, Pixels, Side, require_heads


class RasterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a generator whose tokens are one raster map, made by a step graph.

    An image is a map of `side` * `side` tokens. The null class is `num_classes`. `kv_type` is that
    of the caches, `kv_scales` the sha256 of their scales, where the type has any.
    """

    schema: Literal["arvg-trt/generator/v1"] = "arvg-trt/generator/v1"
    side: Side
    num_classes: Count
    vocab_size: Count
    depth: Count
    width: Count
    heads: Count
    head_dim: Count
    image_size: Pixels
    kv_type: KvType = "float32"
    kv_scales: KvScales | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        require_heads(self.width, self.heads, self.head_dim)
        if self.image_size % self.side:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.side} tokens")

    @property
    def length(self) -> int:
        """Return the number of tokens of an image."""
        return self.side * self.side

    @property
    def static_batch(self) -> None:
        """Return None: its graphs take any number of images."""
        return None

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the raster order [length], in which tokens are generated."""
        return np.arange(self.length)

    @property
    def calibrated_graphs(self) -> tuple[str, ...]:
        return (TEACHER_FORCED,)

    @property
    def recording(self) -> None:
        """Return None: it has a graph of all positions."""
        return None

    @property
    def map_sizes(self) -> dict[str, tuple[int, int, int]]:
        """Return the sizes of the token map that the decoder takes, for `axis_sizes`."""
        return {axis: (self.side,) * 3 for axis in ("h", "w")}

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the decoder's axis sizes; a family that TensorRT builds adds its steps'."""
        return self.map_sizes
