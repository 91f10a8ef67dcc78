"""Chart where in its sequence of tokens a quantized generator leaves FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..cells import SHORT
from ..schema import ENGINE, HALF_PRECISION, QDQ, Report
from .chart import Chart, Series

MOST_POINTS = 128  # positions beyond are shown by means of neighbours
COLOURS = {QDQ: "warn", HALF_PRECISION: "good", ENGINE: "accent"}
OF_DIVERGENCE = (
    "KL of the candidate's next-token distribution from FP32's at each position of the sequence, "
    "both given the same tokens; mean over all rows."
)
OF_FREE = (
    "The share of images that are still on FP32's tokens at each position: beyond the first other "
    "token an image is another draw, which may be as good."
)


def position_charts(report: Report) -> tuple[Chart, ...]:
    """Return charts over positions; none for models without a sequence of tokens."""
    apart: dict[str, Sequence[float]] = {}
    still: dict[str, Sequence[float]] = {}
    for key in COLOURS:
        found = report.generation.get(key)
        if found is not None and found.logits is not None and found.logits.kl_by_position:
            apart[key] = found.logits.kl_by_position
        if found is not None and found.pictures is not None and found.pictures.first_difference:
            pictures = found.pictures
            still[key] = shares_alike(pictures.first_difference, pictures.length)
    charts = []
    if apart:
        charts.append(_chart("Where predictions differ", OF_DIVERGENCE, "nats", apart))
    if still:
        charts.append(_chart("How long images stay on FP32's tokens", OF_FREE, "%", still))
    return tuple(charts)


def shares_alike(first: Sequence[int | None], length: int) -> list[float]:
    """Return, for each of `length` positions, the per cent of images without another token by it.

    `first` has, by image, the number of tokens before the first other one, None where all are same.
    """
    at = np.array([length if each is None else each for each in first])
    return [100 * float(np.mean(at > k)) for k in range(length)]


def _chart(title: str, caption: str, unit: str, found: Mapping[str, Sequence[float]]) -> Chart:
    length = max(map(len, found.values()))
    step = -(-length // MOST_POINTS)
    parts = [slice(at, min(at + step, length)) for at in range(0, length, step)]
    if step > 1:
        caption += f" A point is the mean of {step} neighbours."
    return Chart(
        title=title,
        caption=caption,
        unit=unit,
        names=tuple(_range(part.start + 1, part.stop) for part in parts),
        series=tuple(
            Series(
                SHORT[key],
                tuple(float(np.mean(np.asarray(values)[part])) for part in parts),
                COLOURS[key],
                joined=True,
            )
            for key, values in found.items()
        ),
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}\u2013{last}"
