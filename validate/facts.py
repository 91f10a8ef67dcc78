"""Results of a validation, as its manifest has them."""

from __future__ import annotations

import msgspec


class ValidationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage: the metrics that are finite, by the names that gates read."""

    metrics: dict[str, float]
