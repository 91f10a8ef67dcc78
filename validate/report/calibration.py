"""Describe what a quantization was calibrated on: how many samples, and whether they sufficed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from ...calibrate.facts import CalibrationFacts, DgcSummary
from ..formats import WHOLE

SHORT = 2  # numbers that are written one by one


class DgcRows(msgspec.Struct, frozen=True, kw_only=True):
    """Summarize the rows that distribution-guided calibration (PTQ4ARVG) chose.

    It kept ``kept`` of its ``candidates``. ``conditional_share`` of them, 0 to 1, have a class; the
    others are null rows.
    """

    candidates: int
    kept: int
    conditional_share: float
    select: Literal["ratio", "distance"]

    @classmethod
    def of(cls, found: DgcSummary) -> DgcRows:
        return cls(
            candidates=found.candidates,
            kept=found.kept,
            conditional_share=found.conditional_share,
            select=found.select,
        )


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Say whether the calibration samples were enough for the scales to converge.

    ``settled`` of ``inputs`` had their ranges before the last ``1 - share`` of the samples.
    ``enough`` is None where there were too few batches to tell. ``classes`` are those that a
    generator was calibrated on.
    """

    samples: int
    enough: bool | None = None
    settled: int = 0
    inputs: int = 0
    share: float | None = None
    dgc: DgcRows | None = None
    classes: tuple[int, ...] = ()

    @classmethod
    def of(cls, found: CalibrationFacts) -> Calibration:
        """Return what a report says of the results of calibration."""
        grown = found.convergence
        return cls(
            samples=found.samples,
            enough=None if grown is None else grown.enough,
            settled=0 if grown is None else grown.settled,
            inputs=0 if grown is None else len(grown.sites),
            share=None if grown is None else grown.share,
            dgc=None if found.dgc is None else DgcRows.of(found.dgc),
            classes=found.classes,
        )


def ranges(numbers: Collection[int]) -> str:
    """Return the numbers in ascending order, with runs of three or more as `0-9`."""
    rows: list[list[int]] = []
    for number in sorted(set(numbers)):
        if rows and rows[-1][-1] == number - 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    texts = [
        f"{row[0]}-{row[-1]}" if len(row) > SHORT else ", ".join(map(str, row)) for row in rows
    ]
    return ", ".join(texts)


def calibration_notes(calibration: Calibration, noun: str) -> Iterator[str]:
    """Yield the sentences of a report about calibration; `noun` is what a sample is."""
    if calibration.dgc is not None:
        chosen = calibration.dgc
        yield (
            f"Calibration rows: {chosen.kept} of {chosen.candidates}, chosen by DGC "
            f"({chosen.select}), {WHOLE(chosen.conditional_share)} of them with a class."
        )
    else:
        yield f"Calibration {noun}: {calibration.samples}."
    if calibration.classes:
        yield f"Calibration classes, {len(calibration.classes)}: {ranges(calibration.classes)}."
    if calibration.share is not None:
        verdict = "enough" if calibration.enough else "more may help where a gate fails"
        yield (
            f"The ranges of {calibration.settled} of {calibration.inputs} layer inputs had settled "
            f"before the last {WHOLE(1 - calibration.share)} of the calibration {noun}: {verdict}."
        )
