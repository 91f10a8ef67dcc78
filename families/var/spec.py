"""Define what `generator.json` says of a VAR; needs no session."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...runtime.spec import (
    TEACHER_FORCED,
    AxisSizes,
    Count,
    Defaults,
    KvScales,
    KvType,
    Pixels,
    Side,
    require_heads,
    step_names,
)


class VarSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="var"):
    """Describe a VAR in `generator.json`: what the schedule needs to know beside the graphs.

    `patch_nums` are the sides of the token maps, coarse to fine; the latent is [latent_channels,
    latent_size, latent_size]. The null class is `num_classes`. With a `static_batch` the graphs
    have fixed shapes for so many images, and a step graph a scale. `kv_type` is that of the caches,
    `kv_scales` the sha256 of their scales, where the type has any.
    """

    schema: Literal["arvg-trt/generator/v1"] = "arvg-trt/generator/v1"
    patch_nums: Annotated[tuple[Side, ...], msgspec.Meta(min_length=1, max_length=64)]
    num_classes: Count
    vocab_size: Count
    depth: Count
    width: Count
    heads: Count
    head_dim: Count
    latent_channels: Count
    latent_size: Side
    image_size: Pixels
    defaults: Defaults
    static_batch: Count | None = None
    kv_type: KvType = "float32"
    kv_scales: KvScales | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        require_heads(self.width, self.heads, self.head_dim)
        sides = self.patch_nums
        if any(b <= a for a, b in pairwise(sides)) or sides[-1] != self.latent_size:
            raise ValueError(
                f"patch_nums {list(sides)} do not rise to the latent's side {self.latent_size}"
            )
        if self.image_size % self.latent_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.latent_size}")

    @property
    def steps(self) -> int:
        """Return the steps of one batch, which are its scales."""
        return len(self.patch_nums)

    @property
    def length(self) -> int:
        """Return the number of tokens of an image over all scales."""
        return sum(side * side for side in self.patch_nums)

    @property
    def step_graphs(self) -> tuple[str, ...]:
        return step_names(self.static_batch, self.steps)

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the identity: the encoder gives tokens in the order they are generated."""
        return np.arange(self.length)

    @property
    def calibrated_graphs(self) -> tuple[str, ...]:
        return (TEACHER_FORCED,)

    @property
    def recording(self) -> None:
        """Return None: it has a graph of all positions."""
        return None

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the tokens of a step and those cached before it; the last scale has the most."""
        first, last = self.patch_nums[0] ** 2, self.patch_nums[-1] ** 2
        cached = self.length - last
        return {"n": (first, last, last), "past": (0, cached, cached)}
