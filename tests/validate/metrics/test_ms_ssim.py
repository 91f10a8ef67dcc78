"""MS-SSIM against pytorch-msssim and torchmetrics, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arvg_trt.tests.validate.oracles import published
from arvg_trt.validate.metrics.ms_ssim import MS_SSIM_SIDE, ms_ssim, window


def picture(side: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth colours with noise, [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: side[0], : side[1]]
    waves = [np.sin(x / rng.uniform(5, 40)) + np.cos(y / rng.uniform(5, 40)) for _ in range(3)]
    return np.clip(127 + 50 * np.stack(waves, -1) + rng.normal(0, 6, (*side, 3)), 0, 255).astype(
        np.uint8
    )


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, deviation, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None])


@pytest.mark.parametrize("deviation", [2, 20, 80])
def test_it_is_that_of_pytorch_msssim(deviation: float) -> None:
    a = picture((256, 192), 1)
    b = noisy(a, deviation)
    # Its own window is of float32, which costs 2e-6 of a noisy picture's figure.
    bell = torch.from_numpy(window()).expand(3, 1, 1, -1)
    wanted = published("pytorch_msssim").ms_ssim(tensor(a), tensor(b), data_range=255, win=bell)
    assert ms_ssim(a, b) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("side", [(176, 176), (201, 243)])
def test_it_is_that_of_torchmetrics_for_odd_sides_too(side: tuple[int, int]) -> None:
    library = published("torchmetrics.functional.image")
    a = picture(side, 2)
    b = noisy(a, 15)
    channels = [
        library.multiscale_structural_similarity_index_measure(
            tensor(a)[:, k : k + 1], tensor(b)[:, k : k + 1], data_range=255.0, sigma=1.5
        )
        for k in range(3)
    ]
    # It counts windows that reach over the border of the coarsest scale, of a mirrored image.
    assert ms_ssim(a, b) == pytest.approx(float(torch.stack(channels).mean()), abs=3e-5)


def test_equal_and_constant_pictures_are_one_and_small_ones_have_none() -> None:
    a = picture((MS_SSIM_SIDE, MS_SSIM_SIDE), 3)
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    grey = np.full((200, 200, 3), 7, np.uint8)
    assert ms_ssim(grey, grey) == pytest.approx(1, abs=1e-12)
    small = a[: MS_SSIM_SIDE - 1]
    assert ms_ssim(small, small) is None


def test_opposite_pictures_are_zero_and_no_root_of_a_negative_number() -> None:
    a = picture((176, 180), 4)
    assert ms_ssim(a, 255 - a) == 0
