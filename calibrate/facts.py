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


class CalibrationFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of the stage. ``images`` are the inputs' names, ``classes`` a generator's.

    ``images`` are the samples' names, ``classes`` a generator's. ``masked`` are graphs with NaN and
    infinity inside that reach no output.
    """

    dgc: DgcSummary | None = None
    masked: tuple[str, ...] = ()
    convergence: Convergence | None = None
    classes: tuple[int, ...] = ()
    images: tuple[str, ...]
    skipped: tuple[str, ...]
    samples: int
    synthetic: bool


class PartFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a merged calibration, with those of its options that tell it from the others.

    Statistics without a folder have no samples, and no options that are known.
    """

    name: str
    samples_saved: int
    seed: int | msgspec.UnsetType = msgspec.UNSET
    samples: int | msgspec.UnsetType = msgspec.UNSET
    shard: str | msgspec.UnsetType | None = msgspec.UNSET
    labels: str | msgspec.UnsetType | None = msgspec.UNSET
    synthetic: bool | msgspec.UnsetType = msgspec.UNSET


class MergedFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of a calibration that is made of ``parts``; later stages read them as any other."""

    classes: tuple[int, ...] = ()
    images: tuple[str, ...]
    skipped: tuple[str, ...]
    samples: int
    synthetic: bool
    parts: tuple[PartFacts, ...]
    convergence: Convergence
