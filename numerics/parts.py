"""Split arrays along their first axis, so that what is computed of them stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PART = 2**22  # values at once, in arrays of float64


def parts(array: NDArray[np.generic], most: int | None = None) -> Iterator[slice]:
    """Yield slices of the first axis of an array, each of `most` (`PART`) values or of one row."""
    step = max(1, (most or PART) * len(array) // max(1, array.size))
    for start in range(0, len(array), step):
        yield slice(start, start + step)
