"""Inception score, precision, recall and KID against torch-fidelity and the ADM evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from arvg_trt.errors import AccuracyError
from arvg_trt.tests.validate.oracles import published
from arvg_trt.validate.metrics import precision_recall
from arvg_trt.validate.metrics.inception_score import (
    ADM_PART,
    adm_inception_score,
    fidelity_inception_score,
)
from arvg_trt.validate.metrics.kid import kernel_distance
from arvg_trt.validate.metrics.precision_recall import precision_and_recall


def normal(count: int, width: int, seed: int, shift: float = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) + shift).astype(np.float32)


def adm_score(logits: np.ndarray) -> float:
    """The evaluator's own formula, in float64: evaluations/evaluator.py, guided-diffusion."""
    chances, scores = softmax(logits.astype(np.float64), axis=1), []
    for start in range(0, len(chances), ADM_PART):
        part = chances[start : start + ADM_PART]
        kl = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(kl.sum(axis=1).mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize("count", [1, 700, ADM_PART + 300])
def test_the_inception_score_is_that_of_the_adm_evaluator(count: int) -> None:
    logits = 3 * normal(count, 20, 1)
    assert adm_inception_score(logits).mean == pytest.approx(adm_score(logits), rel=1e-12)


def test_the_inception_score_is_that_of_torch_fidelity() -> None:
    logits = 3 * normal(1234, 20, 2)
    found = fidelity_inception_score(logits)
    wanted = published("torch_fidelity.metric_isc").isc_features_to_metric(torch.from_numpy(logits))
    assert found is not None
    assert found.mean == pytest.approx(wanted["inception_score_mean"], rel=1e-9)
    assert found.deviation == pytest.approx(wanted["inception_score_std"], rel=1e-9)
    assert fidelity_inception_score(logits[:9]) is None


def test_inception_scores_have_known_ends() -> None:
    """All classes as often, each certain: as many as there are; one image or one class: 1."""
    certain = np.tile(np.where(np.eye(7) > 0, 0, -2000.0), (3, 1))  # exp(-2000) is 0
    assert adm_inception_score(certain).mean == pytest.approx(7, rel=1e-12)
    assert adm_inception_score(certain[:1]).mean == 1
    broken = certain.copy()
    broken[0, 0] = np.nan
    with pytest.raises(AccuracyError, match="not finite"):
        adm_inception_score(broken)


@pytest.mark.parametrize("shift", [0, 0.4])
def test_precision_and_recall_are_those_of_torch_fidelity(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_recall, "ROWS", 64)
    monkeypatch.setattr(precision_recall, "COLUMNS", 100)  # several blocks each way
    real, own = normal(400, 8, 3), normal(330, 8, 4, shift) * 0.8
    wanted = published("torch_fidelity.metric_prc").calculate_precision_recall_part(
        torch.from_numpy(own).double(), torch.from_numpy(real).double()
    )
    assert precision_and_recall(real, own) == pytest.approx(wanted, abs=1e-6)
    assert 0 < wanted[0] < 1 and 0 < wanted[1] < 1


def test_precision_and_recall_are_those_of_a_search_over_all_pairs() -> None:
    """The evaluator's `less_thans` compares all pairs too; distances here are of float64."""
    real, own = normal(60, 3, 5).astype(np.float64), normal(50, 3, 6, 0.7).astype(np.float64)

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None] - b).sum(axis=2)

    radii = [np.sort(distances(v, v), axis=1)[:, 3] for v in (real, own)]
    across = distances(own, real)
    precision = (across <= radii[0]).any(axis=1).mean()
    recall = (across <= radii[1][:, None]).any(axis=0).mean()
    assert precision_and_recall(real, own) == (precision, recall)
    assert precision_and_recall(real, real) == (1, 1)
    assert precision_and_recall(real, own + 1000) == (0, 0)
    with pytest.raises(AccuracyError, match="3 images have no 3 neighbours"):
        precision_and_recall(real, own[:3])


def test_features_far_from_zero_keep_their_neighbours() -> None:
    """Without a common origin the squares lose every digit of the distances."""
    real, own = normal(60, 3, 5), normal(50, 3, 6, 0.7)
    far = [np.float64(1e5) + np.asarray(np.round(v * 1024) / 1024, np.float64) for v in (real, own)]
    near = [v - 1e5 for v in far]
    assert precision_and_recall(*far) == precision_and_recall(*near)


@pytest.mark.parametrize("shift", [0, 0.2])
def test_kid_is_that_of_torch_fidelity_with_the_same_draws(shift: float) -> None:
    library = published("torch_fidelity.metric_kid")
    own, real = normal(240, 16, 7, shift), normal(220, 16, 8)
    wanted = library.kid_features_to_metric(
        torch.from_numpy(own),
        torch.from_numpy(real),
        verbose=False,
        kid_subsets=12,
        kid_subset_size=200,
    )
    found = kernel_distance(own, real, subsets=12, most=200)
    assert found.subset == 200
    assert found.mean == pytest.approx(wanted["kernel_inception_distance_mean"], abs=2e-6)
    assert found.deviation == pytest.approx(wanted["kernel_inception_distance_std"], abs=2e-6)


def test_kid_of_few_features_is_the_double_sum() -> None:
    a, b = normal(6, 4, 9).astype(np.float64), normal(6, 4, 10).astype(np.float64)
    found = kernel_distance(a, b)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / 4 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(k(v[i], v[j]) for v in (a, b) for i, j in pairs if i != j) / 30
    assert found.mean == pytest.approx(within - 2 * sum(k(a[i], b[j]) for i, j in pairs) / 36)
    assert found.subset == 6 and found.deviation == pytest.approx(0, abs=1e-12)
    with pytest.raises(AccuracyError, match="one image"):
        kernel_distance(a[:1], b)
    with pytest.raises(AccuracyError, match=r"not \[N, 4\]"):
        kernel_distance(a, b[:, :3])
