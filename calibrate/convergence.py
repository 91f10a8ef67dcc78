"""Judge whether the samples were enough: how much ranges grew with the last half of them.

Statistics stream by in order; what they were at a quarter and at half of the samples is kept on the
way, so that no second run is needed. Ranges only grow, and a grid's step grows with its range: by
1.05 it makes 0.4 dB more rounding noise, by 1.1 it makes 0.8 dB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from .statistics import OUTPUT, POSITION, Statistics, TensorStats

Floats = NDArray[np.float64]
# Largest growth that counts as settled: of a tensor's range, which a per-tensor grid has, and of
# the ranges of nineteen in twenty positions, which per-token grids have.
TENSOR_LIMIT = 0.05
POSITION_LIMIT = 0.1
ENOUGH = 0.95  # of the inputs have settled; the rare outlier of one or two is no lack of samples
QUANTILE = 0.95


class RangeGrowth:
    """Collect statistics by name over batches or shards, and what they were on the way.

    Every part has each name once. `marks` are the numbers of parts at a quarter and at half of
    them, fewer where there are too few parts to tell.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.marks = tuple(sorted({(parts + 2) // 4, (parts + 1) // 2} - {0, parts}))
        self.total: Statistics = {}
        self.at: dict[int, Statistics] = {mark: {} for mark in self.marks}
        self._seen: Counter[str] = Counter()

    def add(self, name: str, stats: TensorStats) -> None:
        before = self.total.get(name)
        self.total[name] = stats if before is None else before.merge(stats)
        self._seen[name] += 1
        if self._seen[name] in self.at:
            self.at[self._seen[name]][name] = self.total[name]


class SiteGrowth(msgspec.Struct, frozen=True, kw_only=True):
    """Say what more samples added to a site's input, as shares of what all of them show.

    `tensor` is of the largest magnitude; `channels` (their ranges), `positions` (their magnitudes)
    and `rms` (of channels, up or down) are what 95 % of them stay below.
    """

    name: str
    tensor: float
    channels: float
    rms: float
    positions: float | None = None

    @property
    def converged(self) -> bool:
        """Return whether the ranges have that inputs are rounded to: the tensor's, the tokens'.

        Those of single channels only shape how the input is scaled, which is tried on samples.
        """
        return self.tensor <= TENSOR_LIMIT and (self.positions or 0.0) <= POSITION_LIMIT

    @property
    def growth(self) -> float:
        """Return what is farthest beyond its limit: the growth of the tensor or of positions."""
        positions = self.positions or 0.0
        beyond = positions / POSITION_LIMIT > self.tensor / TENSOR_LIMIT
        return positions if beyond else self.tensor


class Convergence(msgspec.Struct, frozen=True, kw_only=True):
    """Say how many inputs' ranges had settled; `enough` is None with too few batches.

    `share` of the samples came before those whose growth `sites` have; `earlier` is the median over
    sites of `channels` from a quarter to half of the samples, to compare with `later`, the same
    from there to all.
    """

    enough: bool | None
    settled: int = 0
    share: float | None = None
    earlier: float | None = None
    later: float | None = None
    sites: tuple[SiteGrowth, ...] = ()

    @property
    def text(self) -> str:
        """Return the verdict as one line for a person."""
        if self.enough is None:
            return "too few batches to tell whether the ranges of layer inputs have settled"
        line = f"the ranges of {self.settled} of {len(self.sites)} layer inputs have settled"
        if self.enough:
            return line
        worst = max((site for site in self.sites if not site.converged), key=lambda s: s.growth)
        return (
            f"{line}; {worst.name}'s still grew by {100 * worst.growth:.0f} % over the last "
            f"{100 * (1 - (self.share or 0)):.0f} % of the samples: if a gate fails, calibrate "
            "with more samples"
        )


def convergence(growth: RangeGrowth) -> Convergence:
    """Return the verdict on all inputs that `growth` has seen; outputs are left out."""
    if not growth.marks:
        return Convergence(enough=None)
    half = growth.at[growth.marks[-1]]
    sites = site_growths(half, growth.total)
    settled = sum(site.converged for site in sites)
    earlier = None
    if len(growth.marks) > 1:
        earlier = median_growth(site_growths(growth.at[growth.marks[0]], half))
    return Convergence(
        enough=settled >= ENOUGH * len(sites),
        settled=settled,
        share=growth.marks[-1] / growth.parts,
        earlier=earlier,
        later=median_growth(sites),
        sites=sites,
    )


def site_growths(
    before: Mapping[str, TensorStats], after: Mapping[str, TensorStats]
) -> tuple[SiteGrowth, ...]:
    """Return the growth of each site, in the order of `after`."""
    growths = []
    for name in after:
        if name.endswith((POSITION, OUTPUT)):
            continue
        old, new = before[name], after[name]
        key = f"{name}{POSITION}"
        positions = None
        if key in after:
            parts = (before[key].filled(), after[key].filled())
            positions = most(added(*(magnitudes(part) for part in parts)))
        growths.append(
            SiteGrowth(
                name=name,
                tensor=float(added(magnitudes(old).max(), magnitudes(new).max())),
                channels=most(added(old.high - old.low, new.high - new.low)),
                rms=most(np.abs(added(root_mean_squares(old), root_mean_squares(new)))),
                positions=positions,
            )
        )
    return tuple(growths)


def median_growth(sites: tuple[SiteGrowth, ...]) -> float:
    return float(np.median([site.channels for site in sites]))


def magnitudes(stats: TensorStats) -> Floats:
    return np.maximum(-stats.low, stats.high)


def root_mean_squares(stats: TensorStats) -> Floats:
    found: Floats = np.sqrt(stats.mean_square)
    return found


def added(before: Floats, after: Floats) -> Floats:
    """Return the share of `after` that `before` did not have; 0 of what is 0, or was never seen.

    What no sample has an element of, such as an empty cache, has an infinite range.
    """
    new = np.where(np.isfinite(after), after, 0.0)
    old = np.where(np.isfinite(before), before, 0.0)
    found: Floats = np.divide(new - old, new, out=np.zeros_like(new), where=new != 0)
    return found


def most(values: Floats) -> float:
    return float(np.quantile(values, QUANTILE))
