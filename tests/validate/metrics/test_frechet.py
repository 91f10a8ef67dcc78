"""Frechet distance against scipy's root of the product, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from arvg_trt.errors import AccuracyError
from arvg_trt.validate.metrics.frechet import frechet_distance


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    """With the matrix square root of the product of the covariances."""
    covariances = [np.cov(v, rowvar=False) for v in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1])
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


@pytest.mark.parametrize(("n", "m", "width"), [(50, 40, 6), (500, 300, 12)])
def test_it_is_the_textbook_formula(n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(n)
    mixed = rng.normal(size=(width, width))
    a, b = rng.normal(size=(n, width)), rng.normal(size=(m, width)) @ mixed + 0.5
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-8)


def test_normal_distributions_of_independent_features_have_a_closed_form() -> None:
    """Sum of (m_a - m_b)^2 + (s_a - s_b)^2, exact where the sample covariances are diagonal."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    scale = np.sqrt(3 / 4)  # their deviation over N - 1 is 1
    a, b = signs * scale * [2.0, 3.0] + [1.0, 0.0], signs * scale * [5.0, 1.0] + [0.0, 7.0]
    assert frechet_distance(a, b) == pytest.approx(1 + 49 + 9 + 4, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9), st.integers(1, 12))
def test_it_is_symmetric_never_negative_and_zero_of_a_set_with_itself(
    seed: int, n: int, m: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, width)), rng.normal(size=(m, width)) + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) >= 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * (1 + np.square(a).sum()))
    shuffled = rng.permutation(a)
    assert frechet_distance(shuffled, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_pictures_than_dimensions_give_the_same_as_in_their_own_span() -> None:
    rng = np.random.default_rng(4)
    low = [rng.normal(size=(9, 3)), rng.normal(size=(7, 3)) + 1]
    basis = np.linalg.qr(rng.normal(size=(40, 3)))[0].T
    wide = [v @ basis for v in low]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(*low), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3))),
        (np.zeros((4, 3)), np.zeros((4, 2))),
        (np.zeros(4), np.zeros(4)),
    ],
)
def test_what_has_no_covariance_or_other_widths_is_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(AccuracyError, match="no Frechet distance"):
        frechet_distance(a, b)


def test_features_that_are_not_finite_are_refused() -> None:
    bad = np.array([[1.0, np.nan], [2.0, 3.0]])
    with pytest.raises(AccuracyError, match="1 of 4 features are not finite"):
        frechet_distance(np.ones((2, 2)), bad)
