"""Compute image and signal metrics, each one formula on one pair of arrays.

Decibels are infinite where there is no error at all.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ...extras import require_packages

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11  # 2 * int(3.5 * sigma + 0.5) + 1: scikit-image refuses smaller images


def to_float(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return an image [H, W, 3] uint8 as [1, 3, H, W] in [-1, 1]; `to_uint8` inverts it exactly."""
    scaled = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image [1, 3, H, W], clamped to [-1, 1], as [H, W, 3] uint8, rounded half up."""
    unit = np.clip((image[0].transpose(1, 2, 0) + np.float32(1)) / 2, 0, 1)
    pixels: NDArray[np.uint8] = np.floor(unit * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return pixels


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return 10 log10(255^2 / mean((a - b)^2)) in dB of two uint8 images; inf if identical."""
    error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the SSIM of [H, W, 3] images with sides >= 11: Gaussian window, mean over channels."""
    require_packages("report")
    from skimage.metrics import structural_similarity

    value = structural_similarity(  # type: ignore[no-untyped-call]
        a,
        b,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
    )
    return float(value)


def decibels(value: float | None) -> float:
    """Return a stored value in dB, where None stands for infinity."""
    return math.inf if value is None else value


def none_if_infinite(value: float) -> float | None:
    """Return decibels as JSON holds them: None for no error at all, and for nothing else."""
    if value == math.inf:
        return None
    if not math.isfinite(value):
        raise ValueError(f"{value} dB is no measurement")
    return value


def codebook_use(used: Collection[int], codebook_size: int) -> float:
    """Return the share of the codebook's entries that are among the indices `used`, in [0, 1]."""
    return len(used) / codebook_size
