"""What `generator.json` says of a generator whose image is one map of tokens, by a step graph."""

from __future__ import annotations

from typing import Literal

import msgspec

from .spec import Count, KvType


class RasterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the schedule needs to know beside the graphs.

    An image is a map of `side` * `side` tokens. The null class is `num_classes`. `kv_type` is that
    of the caches.
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
    kv_type: KvType = "float32"

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.side * self.side

    @property
    def static_batch(self) -> None:
        """Its graphs take any number of images."""
        return None
