"""Add up how far the outputs of sites are from FP32's, over all samples and by sample."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ...numerics.noise import SignalAndNoise
from .image import decibels, none_if_infinite
from .sums import SampleSums, energies

# Whose sums by sample are kept: the worst site of other samples is one of the worst of these.
KEPT = 8


class SiteAccumulator:
    """Add up signals and errors of sites, in float64, in the order in which sites first appear."""

    def __init__(self) -> None:
        self._totals: dict[str, SignalAndNoise] = {}
        self._sums: dict[str, SampleSums] = {}

    def add(self, site: str, sample: str, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add a site's output for a sample, of FP32 and of the candidate, of one shape."""
        found = energies(reference, value)
        total = self._totals.setdefault(site, SignalAndNoise())
        total.signal += found["signal"]
        total.noise += found["noise"]
        self._sums.setdefault(site, SampleSums()).add(sample, **found)

    def decibels(self) -> dict[str, float | None]:
        """Return the SQNR in dB of each site over all samples; None for no error."""
        return {name: none_if_infinite(total.decibels()) for name, total in self._totals.items()}

    def worst(self) -> dict[str, dict[str, tuple[float, ...]]]:
        """Return, of the `KEPT` worst sites, `signal` and `noise` by sample; the worst first."""
        known = self.decibels()
        order = sorted(known, key=lambda name: decibels(known[name]))
        return {name: self._sums[name].columns() for name in order[:KEPT]}
