"""Choose the best of several candidates by measured errors, among which NaN is no measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError


def least(errors: ArrayLike, axis: int = 0) -> NDArray[np.intp]:
    """Return the index of the smallest error along `axis`; `np.argmin` would take the first NaN.

    Raises:
        CalibrationError: candidates none of which has a finite error.
    """
    wide = np.asarray(errors, np.float64)
    measured = np.where(np.isnan(wide), np.inf, wide)
    if not np.isfinite(measured.min(axis=axis)).all():
        raise CalibrationError(
            "no candidate for a grid has a finite error",
            do="look for NaN, infinity or values beyond 1e18 in the weights and the samples",
        )
    found: NDArray[np.intp] = np.argmin(measured, axis=axis)
    return found
