"""Collect means and covariances of features batch by batch; those of parts add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError

Floats = NDArray[np.float64]
# Rows that are multiplied at once: a copy of 2,048 features in float64 is 34 MB.
ROWS = 2048


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Hold mean [D] and covariance [D, D], over N - 1, of ``count`` features; None if unknown."""

    mean: Floats
    covariance: Floats
    count: int | None = None


class Moments:
    """Sum features x and their products x x^T in float64: one array [D, D], whatever the number.

    Sums are taken of x - c with c the first batch's mean, so that features far from 0 lose no
    digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin: Floats | None = None
        self._sum: Floats | None = None
        self._products: Floats | None = None

    def add(self, features: NDArray[Any]) -> None:
        """Add features [N, D] of any float type.

        Raises:
            AccuracyError: another width than before, or values that are not finite.
        """
        require_features(features, None if self._sum is None else len(self._sum))
        for start in range(0, len(features), ROWS):
            self._add(features[start : start + ROWS].astype(np.float64))

    def _add(self, rows: Floats) -> None:
        if self._origin is None or self._sum is None or self._products is None:
            self._origin = rows.mean(axis=0)
            self._sum = np.zeros_like(self._origin)
            self._products = np.zeros((rows.shape[1],) * 2)
        rows -= self._origin
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    def merge(self, other: Moments) -> None:
        """Add what another object has summed.

        Raises:
            AccuracyError: features of another width.
        """
        if other._origin is None or other._sum is None or other._products is None:
            return
        if self._origin is None or self._sum is None or self._products is None:
            self.count = other.count
            self._origin, self._sum = other._origin, other._sum.copy()
            self._products = other._products.copy()
            return
        if len(other._sum) != len(self._sum):
            raise AccuracyError(
                f"features of widths {len(self._sum)} and {len(other._sum)} are not one set",
                do="take one feature network for all parts",
            )
        # The other's sums, told from this origin: x - c = (x - c') + d.
        d = other._origin - self._origin
        cross = np.outer(other._sum, d)
        self._products += other._products + cross + cross.T + other.count * np.outer(d, d)
        self._sum += other._sum + other.count * d
        self.count += other.count

    def result(self) -> Gaussian:
        """Return mean and covariance.

        Raises:
            AccuracyError: fewer than two features were added.
        """
        if self.count < 2 or self._origin is None or self._sum is None or self._products is None:
            raise AccuracyError(
                f"{self.count} images have no covariance", do="give two images or more"
            )
        shift = self._sum / self.count
        covariance = (self._products - np.outer(self._sum, shift)) / (self.count - 1)
        return Gaussian(self._origin + shift, covariance, self.count)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the sums by name, as `read` takes them back to the bit.

        Raises:
            AccuracyError: nothing was added.
        """
        if self._origin is None or self._sum is None or self._products is None:
            raise AccuracyError("no features were added", do="give images")
        return {
            "count": np.array(self.count, np.int64),
            "origin": self._origin,
            "sum": self._sum,
            "products": self._products,
        }

    @classmethod
    def read(cls, arrays: dict[str, NDArray[Any]]) -> Moments:
        made = cls()
        made.count = int(arrays["count"])
        made._origin, made._sum = arrays["origin"], arrays["sum"]
        made._products = arrays["products"]
        return made


def require_features(features: NDArray[Any], width: int | None) -> None:
    """Raise AccuracyError unless features are finite, [N, D], and of the width, if there is one."""
    if features.ndim != 2 or not features.shape[1] or width not in (None, features.shape[1]):
        wanted = "[N, D]" if width is None else f"[N, {width}]"
        raise AccuracyError(
            f"features are {list(features.shape)}, not {wanted}",
            do="take one feature network, with features [N, D], for all images",
        )
    finite = int(np.count_nonzero(np.isfinite(features)))
    if finite != features.size:
        raise AccuracyError(
            f"{features.size - finite} of {features.size} features are not finite",
            do="look at the feature network and the images",
        )
