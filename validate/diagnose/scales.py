"""Find scales that are off: those of which a multiple makes a site's own error far smaller.

A scale that calibration chose is close to the best one, whatever its site does to the model. One
that a fault, an edited plan or odd samples have spoiled is not, and this tells it from a site that
is hard to quantize. All sites of a part are tried in one run, each with a multiple of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...graph.builder import constant_array
from ...samples.files import Array
from .alone import AloneMeasurement

COARSE = (-6.0, -4.0, -2.0, 2.0, 4.0, 6.0)  # powers of two that are tried first
FINE = (1.0, 0.5, 0.25, 0.125)  # then steps around the best
# Scales chosen on a few samples gained up to 8.9 dB by a factor of 1.4 (mar-mini on 4 images), and
# 5.3 dB by one of 2.6 (var-mini at 6 bits): one that is off gains by a factor beyond both.
LEAST_GAIN_DB, LEAST_OCTAVES = 6.0, 1.5


@dataclass(frozen=True, slots=True)
class BetterScale:
    """Hold by how much a multiple of one scale lowers the error of a site's output.

    `kind` is input or weight; of a product of two activations input 1 or input 2.
    """

    kind: str
    factor: float
    gain_db: float

    @property
    def is_off(self) -> bool:
        """Return whether the scale is further from the best than calibration leaves it."""
        return self.gain_db >= LEAST_GAIN_DB and abs(math.log2(self.factor)) >= LEAST_OCTAVES


def better_scales(
    measurement: AloneMeasurement, feeds: Iterable[Mapping[str, Array]]
) -> dict[str, list[BetterScale]]:
    """Return by site, for each of its scales, the best multiple that was found."""
    runs = list(feeds)
    held = {
        site: {kind: constant_array(value) for kind, value in scales.items()}
        for site, scales in measurement.scales.items()
    }
    names = {
        site: {kind: str(value.name) for kind, value in scales.items()}
        for site, scales in measurement.scales.items()
    }
    kinds = sorted({kind for scales in held.values() for kind in scales})
    found: dict[str, list[BetterScale]] = {site: [] for site in held}

    def noise(kind: str, exponents: Mapping[str, float]) -> dict[str, float]:
        fed = {
            names[site][kind]: np.asarray(held[site][kind] * 2.0**power, held[site][kind].dtype)
            for site, power in exponents.items()
        }
        totals = dict.fromkeys(exponents, 0.0)
        for run in runs:
            for site, value in measurement.noise(run, fed).items():
                if site in totals:
                    totals[site] += value
        return totals

    for kind in kinds:
        sites = [site for site, scales in held.items() if kind in scales]
        best = dict.fromkeys(sites, 0.0)
        before = noise(kind, best)
        least = dict(before)

        def attempt(steps: Mapping[str, float], kind: str = kind) -> None:
            """Keep the powers that lower the error."""
            for site, value in noise(kind, steps).items():
                # What is not finite loses to anything that is.
                if value < least[site] or not math.isfinite(least[site]):  # noqa: B023
                    least[site], best[site] = value, steps[site]  # noqa: B023

        for power in COARSE:
            attempt(dict.fromkeys(sites, power))
        for step in FINE:
            start = dict(best)
            attempt({site: power + step for site, power in start.items()})
            attempt({site: power - step for site, power in start.items()})
        for site in sites:
            gain = gain_db(before[site], least[site])
            found[site].append(BetterScale(kind, 2.0 ** best[site], gain))
    return found


def gain_db(before: float, after: float) -> float:
    """Return by how much a square of errors fell; infinite from what is not finite."""
    if not math.isfinite(before):
        return math.inf if math.isfinite(after) else 0.0
    if before <= 0 or after >= before:
        return 0.0
    return 10 * float(np.log10(before / max(after, before * 1e-30)))
