"""Compute the kernel distance of two sets of features, KID (Binkowski et al. 2018)."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from .moments import require_features

# As torch-fidelity draws them, so that the same features give its figure.
SUBSETS, SUBSET, SEED = 100, 1000, 2020


class Kid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold mean and, over N, standard deviation of the estimates of drawn pairs of subsets.

    ``subset`` is how many features each has: 1,000, or all of the smaller set where it has fewer.
    The mean is unbiased, and may be a little below 0.
    """

    mean: float
    deviation: float
    subset: int


def kernel_distance(
    own: NDArray[Any], reference: NDArray[Any], subsets: int = SUBSETS, most: int = SUBSET
) -> Kid:
    """Return KID of features [N, D] and [M, D]: squared MMD of the kernel (x.y / D + 1)^3.

    Mean over `subsets` draws of `most` features of each, or as many as both have.

    Raises:
        AccuracyError: fewer than two features, other widths, or values that are not finite.
    """
    for features in (own, reference):
        require_features(features, own.shape[-1])
    subset = min(most, len(own), len(reference))
    if subset < 2:
        raise AccuracyError("one image has no kernel distance", do="give two images or more")
    rng = np.random.RandomState(SEED)
    found = np.empty(subsets)
    for k in range(subsets):
        chosen = [v[rng.choice(len(v), subset, replace=False)] for v in (own, reference)]
        found[k] = squared_mmd(*chosen)
    return Kid(mean=float(found.mean()), deviation=float(found.std()), subset=subset)


def squared_mmd(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of as many features.

    Products are taken in the type of the features, as torch-fidelity does; sums in float64.
    """
    count = len(a)
    within = 0.0
    for features in (a, b):
        values = kernel(features, features)
        within += float(values.sum(dtype=np.float64) - np.trace(values, dtype=np.float64))
    across = float(kernel(a, b).sum(dtype=np.float64))
    return within / (count * (count - 1)) - 2 * across / count**2


def kernel(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = (a @ b.T / a.shape[1] + 1) ** 3
    return found
