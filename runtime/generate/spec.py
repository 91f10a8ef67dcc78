"""What every `generator.json` may say; needs neither numpy nor a session."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

KvType = Literal["float32", "float16"]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """The sampling that the model's authors evaluate it with; a family without a `cfg_power` has
    no such parameter.
    """

    cfg: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    cfg_power: float | None = None
