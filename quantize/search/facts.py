"""Define what a search leaves of its plan in the manifest, and of its measurements in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from .losses import FormatLoss


class SiteLosses(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was measured for a site; `input_loss` is that of its rounded input."""

    name: str
    graph: str
    input_loss: float
    formats: tuple[FormatLoss, ...]


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """Losses by site, and by graph points of (sum of its losses, loss at the end of all graphs).

    A graph's own loss is the mean KL of its logits in nats, or the mean square of the error of its
    outputs (before they are rounded to codes) relative to their variance.
    """

    samples: int
    sites: tuple[SiteLosses, ...]
    responses: Mapping[str, tuple[tuple[float, float], ...]]
    schema: Literal["arvg-trt/sensitivity/v1"] = "arvg-trt/sensitivity/v1"


class SearchedSite(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the format that a search chose for a site, its packed bytes and its loss."""

    name: str
    graph: str
    format: str
    bytes: int
    loss: float


class SearchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage: losses at the end of all graphs, and what each site got.

    The plan's loss is that of the program's curves, that of weights rounded in place, and that of
    the quantized model. `uniform_bits` are the most that every site can have within the budgets;
    without any such width they are 0, and their loss is None.
    """

    predicted_loss: float
    measured_loss: float
    quantized_loss: float
    uniform_bits: int
    uniform_loss: float | None
    bytes: int
    avg_bits: float
    sites: tuple[SearchedSite, ...]
