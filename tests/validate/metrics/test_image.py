"""Metrics against their formulas, written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arvg_trt.errors import AccuracyError
from arvg_trt.numerics.noise import sqnr_db
from arvg_trt.validate.metrics.image import codebook_use, psnr, ssim, to_float, to_uint8

images = arrays(np.uint8, (4, 5, 3))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_psnr_is_the_textbook_formula() -> None:
    a, b = noise(1), noise(2)
    squares = [(int(x) - int(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    expected = 20 * math.log10(255) - 10 * math.log10(sum(squares) / len(squares))
    assert psnr(a, b) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_one_level_everywhere_is_48_13_db() -> None:
    a = np.full((8, 8, 3), 100, dtype=np.uint8)
    assert psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(images, images)
def test_psnr_is_symmetric_and_infinite_only_for_identical_images(
    a: np.ndarray, b: np.ndarray
) -> None:
    assert psnr(a, b) == psnr(b, a)
    assert math.isinf(psnr(a, b)) == np.array_equal(a, b)


def test_ssim_of_identical_images_is_one_and_falls_with_noise() -> None:
    a = noise(3)
    slightly = np.clip(a.astype(int) + np.random.default_rng(4).integers(-9, 10, a.shape), 0, 255)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, noise(5)) < 0.2 < ssim(a, slightly.astype(np.uint8)) < 1


def test_ssim_is_the_windowed_formula_in_float64() -> None:
    a, b = noise(6), np.clip(noise(6).astype(int) + 12, 0, 255).astype(np.uint8)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        x, y = (image[..., channel].astype(np.float64) for image in (a, b))
        for i in range(5, x.shape[0] - 5):
            for j in range(5, x.shape[1] - 5):
                p, q = (z[i - 5 : i + 6, j - 5 : j + 6] for z in (x, y))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + c1) * (2 * cov + c2)
                values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)


def test_sqnr_of_a_tenth_of_the_amplitude_is_20_db() -> None:
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    assert sqnr_db(x, x * np.float32(1.1)) == pytest.approx(20, abs=1e-4)
    assert math.isinf(sqnr_db(x, x))


def test_sqnr_against_silence_is_refused() -> None:
    with pytest.raises(AccuracyError, match="zero everywhere"):
        sqnr_db(np.zeros(3), np.ones(3))


@settings(max_examples=20, deadline=None)
@given(images)
def test_an_image_survives_the_way_to_float_and_back(image: np.ndarray) -> None:
    assert np.array_equal(to_uint8(to_float(image)), image)


@given(st.floats(-1e6, 1e6, width=32))
def test_values_outside_the_range_are_clamped(value: float) -> None:
    image = np.full((1, 3, 1, 1), value, dtype=np.float32)
    expected = min(max((value + 1) / 2, 0), 1) * 255
    assert abs(int(to_uint8(image)[0, 0, 0]) - expected) <= 0.501


def test_codebook_use_is_a_share_of_distinct_entries() -> None:
    assert codebook_use({0, 5, 9}, 12) == 0.25
