"""Define what calibration records of its samples, in its manifest and for later stages."""

from __future__ import annotations

from typing import Literal

import msgspec

from .convergence import Convergence


class DgcSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Summarize the rows that distribution-guided calibration (PTQ4ARVG) chose.

    ``conditional_share`` of the ``kept`` rows, 0 to 1, have a class; the others are null rows.
    ``covariance`` and ``agree`` say how distances were measured, ``median_distance`` what they
    were.
    """

    candidates: int
    kept: int
    conditional_share: float
    select: Literal["ratio", "distance"]
    covariance: str
    agree: bool
    median_distance: dict[str, float]


class CalibrationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the results of the stage.

    ``images`` are the samples' names, ``classes`` a generator's. ``masked`` are graphs with NaN and
    infinity inside that reach no output.
    """

    images: tuple[str, ...]
    skipped: tuple[str, ...]
    samples: int
    synthetic: bool
    classes: tuple[int, ...] = ()
    masked: tuple[str, ...] = ()
    convergence: Convergence | None = None
    dgc: DgcSummary | None = None
