"""What every `generator.json` may say; needs neither numpy nor a session."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

KvType = Literal["float32", "float16"]
# Above any model's classes, codes and widths; a table of as many rows is gigabytes.
Count = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]  # of a token map
Pixels = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """The sampling that the model's authors evaluate it with; a family without a `cfg_power` has
    no such parameter.
    """

    cfg: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    cfg_power: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, with every value that no sampler takes."""
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
    """Raises ValueError unless all heads together are as wide as the model."""
    if heads * head_dim != width:
        raise ValueError(f"{heads} heads of {head_dim} are not the width {width}")


def step_names(static_batch: int | None, scales: int) -> tuple[str, ...]:
    """Names of the step graphs: one for all scales, or with fixed shapes one a scale."""
    return ("step",) if static_batch is None else tuple(f"step.{k}" for k in range(scales))


TIMES = 1000  # of the training
