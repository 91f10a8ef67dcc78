"""Compute multi-scale SSIM of two images (Wang, Simoncelli and Bovik 2003)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...extras import require_packages
from .image import SSIM_SIGMA, SSIM_WINDOW

# Exponents of the five scales, finest first; the published ones.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = SSIM_WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)  # a whole window at the coarsest scale
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Plane = NDArray[np.float64]


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Return the MS-SSIM of [H, W, 3] uint8 images, in [0, 1], mean over channels.

    Gaussian windows (11 pixels, sigma 1.5) inside the image only; between scales 2x2 means, which
    leave out an odd last row or column; a negative contrast term counts as 0. None for images with
    a side below 176, which have no five scales.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    channels = zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True)
    values = [plane_ms_ssim(x.astype(np.float64), y.astype(np.float64)) for x, y in channels]
    return math.fsum(values) / len(values)


def plane_ms_ssim(a: Plane, b: Plane) -> float:
    """Return the MS-SSIM of two planes [H, W] of values from 0 to 255."""
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            a, b = halved(a), halved(b)
        similarity, contrast = similarity_and_contrast(a, b)
        last = scale == len(SCALE_WEIGHTS) - 1
        product *= max(0.0, similarity if last else contrast) ** weight
    return product


def similarity_and_contrast(a: Plane, b: Plane) -> tuple[float, float]:
    """Return the means over all windows of SSIM and of its contrast-structure term."""
    mean_a, mean_b = blurred(a), blurred(b)
    spread = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    contrast = (2 * (blurred(a * b) - mean_a * mean_b) + C2) / (spread + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return float(np.mean(luminance * contrast)), float(np.mean(contrast))


def blurred(plane: Plane) -> Plane:
    """Return the Gaussian mean of each window that lies wholly inside the plane."""
    require_packages("report")
    from scipy.ndimage import correlate1d

    reach = SSIM_WINDOW // 2
    inside = (slice(reach, -reach),) * 2
    kernel = window()
    rows: Any = correlate1d(plane, kernel, axis=0)
    found: Plane = correlate1d(rows, kernel, axis=1)[inside]
    return found


def window() -> NDArray[np.float64]:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    bell = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return np.asarray(bell / bell.sum(), np.float64)


def halved(plane: Plane) -> Plane:
    """Return the means of 2x2 blocks; an odd last row or column is left out."""
    height, width = (side // 2 for side in plane.shape)
    blocks = plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float64)
