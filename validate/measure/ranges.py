"""Compare the ranges of a user's held-out arrays with those of the samples of the calibration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from ...samples.arrays import ArraySamples
from ...samples.base import SampleSource
from ...samples.files import Array, load_sample

# Times as far as the other samples: bytes reach 255 times as far as images in [0, 1].
FAR = 4.0


def unlike_calibration(sources: Collection[SampleSource], calibrated: Path) -> list[str]:
    """Return a sentence for each float input that reaches much further on one of both sides.

    `calibrated` is the folder of the samples that the calibration saved. Images are scaled by us.
    """
    held_out = [each for each in sources if isinstance(each, ArraySamples) and each.file]
    if not held_out:
        return []
    seen = reaches(map(load_sample, sorted(calibrated.glob("*.safetensors"))))
    found = []
    for name, own in reaches(feeds for each in held_out for feeds in each.feeds()).items():
        other = seen.get(name, 0.0)
        if own > 0 and other > 0 and not 1 / FAR <= own / other <= FAR:
            found.append(
                f"{name} reaches {own:g} in the held-out samples and {other:g} in those of the "
                "calibration: is one of them scaled otherwise?"
            )
    return found


def reaches(samples: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """Return the largest magnitude of each float input over all samples."""
    largest: dict[str, float] = {}
    for feeds in samples:
        for name, values in feeds.items():
            if values.dtype.kind == "f" and values.size:
                reach = float(np.abs(values).max())
                largest[name] = float(np.maximum(largest.get(name, 0.0), reach))
    return largest
