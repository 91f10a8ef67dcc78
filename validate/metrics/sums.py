"""Keep what each sample adds to a figure, so that its interval can be had afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = Mapping[str, tuple[float, ...]]  # by the name of a column, a number a sample


class SampleSums:
    """Add up columns of numbers by sample, in the order in which samples first appear."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, float]] = {}

    def add(self, sample: str, **amounts: float) -> None:
        """Add to the columns that `amounts` names; a sample may come several times."""
        row = self._rows.setdefault(sample, {})
        for name, amount in amounts.items():
            row[name] = row.get(name, 0.0) + float(amount)

    def columns(self) -> dict[str, tuple[float, ...]]:
        """Return the columns; a sample that added nothing to one of them has 0 there."""
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        return {n: tuple(row.get(n, 0.0) for row in self._rows.values()) for n in names}


def energies(reference: NDArray[Any], value: NDArray[Any], what: str = "") -> dict[str, float]:
    """Return the sums of squares of a signal and of its error, named `WHATsignal`, `WHATnoise`."""
    exact = reference.astype(np.float64)
    noise = np.square(exact - value.astype(np.float64))
    return {f"{what}signal": float(np.square(exact).sum()), f"{what}noise": float(noise.sum())}
