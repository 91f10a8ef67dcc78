"""Compute the Frechet distance of two sets of features, as if both were normally distributed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError
from .moments import Floats, Gaussian


def frechet_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N, D] and [M, D].

    It is what FID takes of Inception's features (Heusel et al. 2017); covariances over N - 1. With
    X the centred features over sqrt(N - 1), so that C = X^T X, the trace of the root is the sum of
    the singular values of X_a X_b^T: no root of a product is taken, and fewer features than
    dimensions are no special case.

    Raises:
        AccuracyError: fewer than two rows, other widths, values that are not finite.
    """
    for features in (a, b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise AccuracyError(
                f"no Frechet distance of features {list(a.shape)} and {list(b.shape)}",
                do="give two or more images, and the same network for both",
            )
        if not np.isfinite(features).all():
            raise AccuracyError(
                f"{int(features.size - np.isfinite(features).sum())} of {features.size} features "
                "are not finite",
                do="look at the feature network and the images",
            )
    means, factors = zip(*(moments(v.astype(np.float64)) for v in (a, b)), strict=True)
    gap = float(np.sum(np.square(means[0] - means[1])))
    spread = sum(float(np.sum(np.square(factor))) for factor in factors)
    if not gap + spread < np.inf:
        raise AccuracyError(
            "features are too large for float64 squares", do="look at the feature network"
        )
    shared = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    return max(0.0, gap + spread - 2 * shared)


def moments(features: Floats) -> tuple[Floats, Floats]:
    """Return the mean [D] and a factor R [at most D, D] of the covariance R^T R."""
    mean: Floats = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    # The singular values of X_a X_b^T are those of R_a R_b^T for X = QR.
    if len(features) <= features.shape[1]:
        return mean, centred
    _, factor = np.linalg.qr(centred)
    return mean, factor


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the Frechet distance of two Gaussians [D], as FID takes it of Inception's features.

    With A^T A = C_a, the trace of (C_a C_b)^(1/2) is the sum of the roots of the eigenvalues of
    A C_b A^T, which is symmetric: no root of a product is taken, which is complex where rounding
    wills it.

    Raises:
        AccuracyError: other widths, or values that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise AccuracyError(
            f"no Frechet distance of features of widths {len(a.mean)} and {len(b.mean)}",
            do="take the reference of the same feature network",
        )
    gap = float(np.sum(np.square(a.mean - b.mean)))
    spread = float(np.trace(a.covariance) + np.trace(b.covariance))
    if not gap + abs(spread) < np.inf:
        raise AccuracyError(
            "the mean or covariance of features is not finite", do="look at the feature network"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    positive = values > rounding(values)
    factor = np.sqrt(values[positive])[:, None] * vectors[:, positive].T
    shared = np.linalg.eigvalsh(factor @ b.covariance @ factor.T)
    roots = np.sqrt(shared[shared > rounding(shared)])
    return max(0.0, gap + spread - 2 * float(roots.sum()))


def rounding(eigenvalues: Floats) -> float:
    """Return below which eigenvalues are rounding errors of 0, whose roots would add up.

    Fewer features than dimensions leave hundreds of them, each with a root of 1e-8 of the largest.
    """
    epsilon = float(np.finfo(np.float64).eps)
    return len(eigenvalues) * epsilon * float(eigenvalues.max(initial=0.0))
