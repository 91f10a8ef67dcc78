"""Summarize one number per image, where decibels may be infinite.

JSON has no infinity, so None stands for it; a value is never replaced by a large number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from ...errors import AccuracyError


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one number per image, with mean and minimum; None stands for infinity (no error).

    The mean leaves infinite values out, so that identical images cannot hide a bad one; it is
    None only if every value is infinite.
    """

    mean: float | None
    min: float | None
    each: tuple[float | None, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Return the summary of `values`.

        Raises:
            AccuracyError: a value is NaN or -inf, which are no measurements.
        """
        if not all(v > -math.inf for v in values):
            raise AccuracyError("a metric of an image is NaN or -inf", do="look at the images")
        finite = [v for v in values if math.isfinite(v)]
        return cls(
            mean=math.fsum(finite) / len(finite) if finite else None,
            min=min(finite, default=None),
            each=tuple(v if math.isfinite(v) else None for v in values),
        )
