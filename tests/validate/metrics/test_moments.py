"""Streamed means and covariances against numpy's, and their Frechet distance against libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from arvg_trt.errors import AccuracyError
from arvg_trt.tests.validate.oracles import published
from arvg_trt.validate.metrics.frechet import frechet_distance, gaussian_distance
from arvg_trt.validate.metrics.moments import Gaussian, Moments


def moments(*batches: np.ndarray) -> Moments:
    made = Moments()
    for batch in batches:
        made.add(batch)
    return made


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Correlated float32 features, as a network gives them."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(width, width)) / np.sqrt(width)
    return np.maximum(rng.normal(size=(count, width)) @ mixed + 0.3, 0).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.lists(st.integers(1, 9), min_size=2, max_size=6), st.booleans())
def test_any_cut_into_batches_and_parts_is_numpys_covariance(
    seed: int, sizes: list[int], far: bool
) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, 4)) + (1e6 if far else 0) for n in sizes]
    whole = np.concatenate(parts)
    found = [moments(*parts).result()]
    merged = Moments()
    for part in parts:
        merged.merge(moments(part))
    found.append(merged.result())
    found.append(Moments.read(merged.arrays()).result())
    for each in found:
        assert each.count == len(whole)
        np.testing.assert_allclose(each.mean, whole.mean(axis=0), rtol=1e-12)
        # A mean of 1e6 has 1e-10 of float64's digits left for the deviations.
        np.testing.assert_allclose(
            each.covariance, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-8 if far else 1e-12
        )


def test_merging_nothing_changes_nothing_and_another_width_is_refused() -> None:
    one = moments(features(9, 3, 0))
    before = one.result()
    one.merge(Moments())
    np.testing.assert_array_equal(one.result().covariance, before.covariance)
    with pytest.raises(AccuracyError, match="widths 3 and 4"):
        one.merge(moments(features(9, 4, 0)))
    with pytest.raises(AccuracyError, match=r"\[9, 4\], not \[N, 3\]"):
        one.add(features(9, 4, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    broken = features(5, 3, 1)
    broken[2, 1] = bad
    with pytest.raises(AccuracyError, match="1 of 15 features are not finite"):
        moments(broken)


def test_one_image_and_none_have_no_covariance() -> None:
    for made in (Moments(), moments(features(1, 3, 0))):
        with pytest.raises(AccuracyError, match="no covariance"):
            made.result()


def test_gaussians_have_their_closed_form() -> None:
    """|m|^2 + sum (s_a - s_b)^2 of covariances with the same axes."""
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    a, b = np.array([1.0, 4, 9, 0, 2, 0.5]), np.array([4.0, 1, 0, 0, 2, 8])
    made = [
        Gaussian(np.full(6, mean), basis * values @ basis.T)
        for mean, values in ((1.0, a), (3.0, b))
    ]
    wanted = 6 * 4 + np.sum(np.square(np.sqrt(a) - np.sqrt(b)))
    assert gaussian_distance(*made) == pytest.approx(wanted, rel=1e-12)
    assert gaussian_distance(made[0], made[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [40, 400], ids=["fewer features than dimensions", "more"])
def test_it_is_the_fid_of_the_adm_evaluator_torch_fidelity_and_torchmetrics(count: int) -> None:
    a, b = features(count, 96, 1), features(300, 96, 2) * 1.1
    found = gaussian_distance(moments(a).result(), moments(b).result())
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-8)
    # Heusel's formula as the ADM evaluator has it; with fewer features than dimensions its root of
    # a singular product keeps half of the digits.
    covariances = [np.cov(v, rowvar=False) for v in (a, b)]
    gap = a.mean(axis=0) - b.mean(axis=0)
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    adm = gap @ gap + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root)
    assert found == pytest.approx(adm, rel=1e-3 if count < 96 else 1e-5)
    fidelity = published("torch_fidelity.metric_fid")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(v)) for v in (a, b)]
    assert found == pytest.approx(
        fidelity.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
        rel=1e-4,
    )
    theirs = published("torchmetrics.image.fid")._compute_fid(
        *(
            torch.from_numpy(part)
            for v, c in zip((a, b), covariances, strict=True)
            for part in (v.mean(axis=0, dtype=np.float64), c)
        )
    )
    assert found == pytest.approx(float(theirs), rel=1e-5)


def test_references_of_another_width_or_without_numbers_are_refused() -> None:
    a, b = moments(features(9, 3, 0)).result(), moments(features(9, 4, 0)).result()
    with pytest.raises(AccuracyError, match="widths 3 and 4"):
        gaussian_distance(a, b)
    with pytest.raises(AccuracyError, match="not finite"):
        gaussian_distance(a, Gaussian(a.mean, np.full((3, 3), np.nan)))
