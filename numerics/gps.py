"""Compute gain-projected scales (PTQ4ARVG): channel scales at which two rounding errors balance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def gps_scale(
    x_sq: Floats,
    dx_sq: Floats,
    wq_sq: Floats,
    dw_sq: Floats,
    reference: int,
    reference_scale: float,
) -> Floats:
    """Return s_i = s_r (|X_i|^2 |dW_i|^2 / (|dX_i|^2 |Q(W)_i|^2))^(1/4); the reference has s_r.

    Where the weights' error |X_i|^2 |dW_i|^2 / s^2 and the input's s^2 |dX_i|^2 |Q(W)_i|^2 meet,
    their sum is least. All [C], squared norms; `dx_sq` is the error on the grid of the reference
    channel. A numerator or denominator of 0 gives scale 1.
    """
    above, below = x_sq * dw_sq, dx_sq * wq_sq
    alive = (above > 0) & (below > 0)
    scale = np.ones_like(above)
    scale[alive] = reference_scale * (above[alive] / below[alive]) ** 0.25
    scale[reference] = reference_scale
    return scale
