"""Compute precision and recall of sets of features (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls around its features, each up to the third nearest other one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from .moments import require_features

NEIGHBOURS = 3
# Rows and columns of distances in memory at once: 64 MB of float32.
ROWS, COLUMNS = 2048, 8192

Floats = NDArray[np.float32]


def precision_and_recall(reference: NDArray[Any], own: NDArray[Any]) -> tuple[float, float]:
    """Return the shares of `own` inside the reference's manifold, and of the reference in own's.

    Features [N, D] and [M, D]; distances are of float32 products. The ADM evaluator multiplies in
    half precision where that stays finite, which moves single features across a boundary.

    Raises:
        AccuracyError: fewer than four features, other widths, or values that are not finite.
    """
    for features in (reference, own):
        require_features(features, reference.shape[-1])
        if len(features) <= NEIGHBOURS:
            raise AccuracyError(
                f"{len(features)} images have no {NEIGHBOURS} neighbours each",
                do=f"give {NEIGHBOURS + 1} images or more",
            )
    # Distances do not change with the origin, and their rounding is least around the mean.
    centre = reference.mean(axis=0, dtype=np.float64)
    sets = [np.asarray(v - centre, np.float32) for v in (reference, own)]
    radii = [neighbour_distances(v) for v in sets]
    return inside(sets[1], sets[0], radii[0]), inside(sets[0], sets[1], radii[1])


def neighbour_distances(features: Floats) -> Floats:
    """Return the squared distance of each feature to its third nearest other one, [N]."""
    found = np.empty(len(features), np.float32)
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS]
        nearest = np.empty((len(rows), 0), np.float32)
        for first in range(0, len(features), COLUMNS):
            block = squared_distances(rows, features[first : first + COLUMNS])
            # The feature itself is the nearest, so that it takes one place more.
            nearest = smallest(np.concatenate([nearest, block], axis=1), NEIGHBOURS + 1)
        found[start : start + ROWS] = nearest.max(axis=1)
    return found


def smallest(values: Floats, count: int) -> Floats:
    """Return the `count` smallest values of each row, or all, in any order."""
    if values.shape[1] <= count:
        return values
    return np.partition(values, count - 1, axis=1)[:, :count]


def inside(features: Floats, manifold: Floats, radii: Floats) -> float:
    """Return the share of features that lie in a ball of the manifold; radii are squared."""
    count = 0
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS]
        found = np.zeros(len(rows), np.bool_)
        for first in range(0, len(manifold), COLUMNS):
            part = slice(first, first + COLUMNS)
            found |= (squared_distances(rows, manifold[part]) <= radii[part]).any(axis=1)
        count += int(np.count_nonzero(found))
    return count / len(features)


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Return |a_i - b_j|^2, [N, M], never below 0."""
    norms = [np.einsum("ij,ij->i", v, v, dtype=np.float32) for v in (a, b)]
    found: Floats = np.maximum(norms[0][:, None] - 2 * (a @ b.T) + norms[1], np.float32(0))
    return found
