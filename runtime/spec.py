"""Define what every `generator.json` says, and what a family answers about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .recording import Recording

KvType = Literal["float32", "float16", "fp8", "int8"]
# The sha256 of the scales of stored keys and values; those of one generator are the same.
KvScales = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# The limit is above any model's classes, codes and widths; a table of so many rows takes gigabytes.
Count = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]  # in tokens
Pixels = Annotated[int, msgspec.Meta(ge=1, le=65536)]
AxisSizes = Mapping[str, tuple[int, int, int]]
TEACHER_FORCED = "full"  # the graph of all positions at once, teacher-forced
DECODER = "decoder"  # the graph that makes an image of tokens


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the sampling that the model's authors evaluate it with.

    A family without a `cfg_power` has no such parameter.
    """

    cfg: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    cfg_power: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError that lists every value that no sampler takes."""
        power = 0.0 if self.cfg_power is None else self.cfg_power
        odd = [
            f"{name} is {value}, not {wanted}"
            for name, value, wanted, fits in (
                ("cfg", self.cfg, "0 or more", 0 <= self.cfg < math.inf),
                ("top_k", self.top_k, "0 or more", self.top_k >= 0),
                ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
                ("temperature", self.temperature, "above 0", 0 < self.temperature < math.inf),
                ("cfg_power", power, "0 or more", 0 <= power < math.inf),
            )
            if not fits
        ]
        if odd:
            raise ValueError("; ".join(odd))


def require_heads(width: int, heads: int, head_dim: int) -> None:
    """Raise ValueError unless all heads together are as wide as the model."""
    if heads * head_dim != width:
        raise ValueError(f"{heads} heads of {head_dim} are not the width {width}")


def step_names(static_batch: int | None, scales: int) -> tuple[str, ...]:
    """Return names of the step graphs: one for all scales, or with fixed shapes one per scale."""
    return ("step",) if static_batch is None else tuple(f"step.{k}" for k in range(scales))


TIMES = 1000  # diffusion times in the training


class GeneratorSpec(Protocol):
    """Define what a family's `generator.json` says, and what follows from it.

    A spec is a frozen msgspec Struct with `tag_field="family"` and the family's name as its tag.
    Images of a batch are `rows` of a transformer: the conditional ones, then under guidance as many
    of the null class `num_classes`.
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Return the number of codes of a token; 0 where tokens are continuous."""
        ...

    @property
    def length(self) -> int:
        """Return the number of tokens of an image."""
        ...

    @property
    def image_size(self) -> int: ...

    @property
    def steps(self) -> int:
        """Return the steps of one batch, unless the sampling says otherwise."""
        ...

    @property
    def defaults(self) -> Defaults: ...

    @property
    def static_batch(self) -> int | None:
        """Return the images that graphs of fixed shapes take at once; None: any number."""
        ...

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the place of each token, in order of generation, among the encoder's.

        For a map of tokens it is the raster cell, [length].
        """
        ...

    @property
    def calibrated_graphs(self) -> tuple[str, ...]:
        """Return the graphs that are calibrated and planned; others take over scales."""
        ...

    @property
    def recording(self) -> Recording | None:
        """Return which runs along a trajectory are samples; None: rows of `TEACHER_FORCED`."""
        ...

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the smallest, best and largest size of each dynamic axis of a graph.

        Axes are by name; `rows` and `batch` are known already. The best sizes are those of the
        steps that take the longest.
        """
        ...
