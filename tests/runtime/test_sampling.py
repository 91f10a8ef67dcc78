from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from arvg_trt.errors import GenerationError
from arvg_trt.runtime.sampling import (
    Sampling,
    exponential_noise,
    guide,
    image_streams,
    keep_top_k,
    keep_top_p,
    sample,
)


def left_by_definition(row: np.ndarray, k: int, p: float) -> dict[int, float]:
    """Token -> probability after top-k, then top-p, of one row, in plain Python floats."""
    values = {token: float(v) for token, v in enumerate(row)}
    if k:
        kth = sorted(values.values(), reverse=True)[k - 1]
        values = {token: v for token, v in values.items() if v >= kth}
    largest = max(values.values())
    weights = {token: np.exp(v - largest) for token, v in values.items()}
    total = sum(weights.values())
    ascending = sorted(weights, key=lambda token: (values[token], token))
    mass, gone = 0.0, []
    for token in ascending[:-1]:
        mass += weights[token] / total
        # Within rounding of the boundary the answer is anybody's.
        if p < 1 and abs(mass - (1 - p)) < 1e-6:
            reject()
        if mass <= 1 - p and p < 1:
            gone.append(token)
    kept = {token: w for token, w in weights.items() if token not in gone}
    return {token: w / sum(kept.values()) for token, w in kept.items()}


def token_by_definition(row: np.ndarray, noise: np.ndarray, k: int, p: float) -> int:
    left = left_by_definition(row, k, p)
    return max(left, key=lambda token: left[token] / noise[token])


@st.composite
def cases(draw: st.DrawFn, *, levels: int = 0) -> tuple[np.ndarray, int, float, int]:
    """Logits [R, V] (of a few distinct values where `levels`), top_k, top_p and a seed."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 24)))
    logits = rng.normal(0, draw(st.sampled_from([0.1, 2, 20])), shape)
    if levels:
        logits = rng.integers(0, levels, shape)
    top_k = draw(st.integers(0, shape[1]))
    top_p = draw(st.sampled_from([1.0, 0.96, 0.7, 0.31, 0.05, 1e-9]))
    return logits.astype(np.float32), top_k, top_p, seed


def noise_like(logits: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1).exponential(size=logits.shape)


def kept_tokens(logits: np.ndarray, k: int, p: float) -> list[set[int]]:
    tokens, values = keep_top_k(logits, k)
    values = keep_top_p(values, p)
    return [set(t[np.isfinite(v)].tolist()) for t, v in zip(tokens, values, strict=True)]


@given(st.one_of(cases(), cases(levels=2), cases(levels=5)))
@settings(max_examples=300, deadline=None)
def test_tokens_are_those_of_the_definition(case) -> None:
    logits, k, p, seed = case
    noise = noise_like(logits, seed)
    wanted = [token_by_definition(*pair, k, p) for pair in zip(logits, noise, strict=True)]
    assert sample(logits, noise, k, p).tolist() == wanted


@given(st.one_of(cases(), cases(levels=3)))
@settings(max_examples=200, deadline=None)
def test_kept_tokens_are_those_of_the_definition(case) -> None:
    logits, k, p, _ = case
    wanted = [set(left_by_definition(row, k, p)) for row in logits]
    assert kept_tokens(logits, k, p) == wanted


@given(cases())
@settings(max_examples=100, deadline=None)
def test_permuting_tokens_permutes_the_draw(case) -> None:
    logits, k, p, seed = case
    noise = noise_like(logits, seed)
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    permuted = sample(logits[:, order], noise[:, order], k, p)
    assert np.array_equal(order[permuted], sample(logits, noise, k, p))


@given(cases(levels=4), st.integers(-8, 8))
@settings(max_examples=50, deadline=None)
def test_adding_a_constant_to_a_row_changes_nothing(case, constant: int) -> None:
    logits, k, p, seed = case
    noise = noise_like(logits, seed)
    shifted = logits + np.float32(constant)
    assert np.array_equal(sample(shifted, noise, k, p), sample(logits, noise, k, p))


@given(cases())
@settings(max_examples=50, deadline=None)
def test_rows_do_not_depend_on_each_other(case) -> None:
    logits, k, p, seed = case
    noise = noise_like(logits, seed)
    together = sample(logits, noise, k, p)
    alone = [sample(logits[i : i + 1], noise[i : i + 1], k, p)[0] for i in range(len(logits))]
    assert together.tolist() == alone


def test_ties_with_the_kth_value_are_kept() -> None:
    logits = np.array([[1, 3, 2, 2, 2, 0], [5, 4, 3, 2, 1, 0]], np.float32)
    assert kept_tokens(logits, 2, 1.0) == [{1, 2, 3, 4}, {0, 1}]


def test_of_equal_values_top_p_removes_the_earlier() -> None:
    equal = np.zeros((1, 4), np.float32)
    assert kept_tokens(equal, 0, 0.6) == [{1, 2, 3}]
    assert kept_tokens(equal, 0, 0.4) == [{2, 3}]


@pytest.mark.parametrize("p", [1e-300, 1e-9, 0.2])
def test_largest_is_kept_however_small_p(p: float) -> None:
    assert kept_tokens(np.array([[0, 9, 1]], np.float32), 0, p) == [{1}]


def test_probability_of_top_p_is_among_what_top_k_left() -> None:
    """0.5 of all, but 0.5/0.8 of the two that top-k leaves: with p = 0.6 one is enough."""
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    assert kept_tokens(logits, 2, 0.6) == [{0}]
    assert kept_tokens(logits, 0, 0.6) == [{0, 1}]


def test_draws_have_the_probabilities_of_what_is_left() -> None:
    rows = 40_000
    row = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])).astype(np.float32)
    noise = exponential_noise(image_streams(5, 0, 1), rows, row.size)
    drawn = sample(np.tile(row, (rows, 1)), noise, 5, 0.9)
    wanted = left_by_definition(row, 5, 0.9)
    assert set(np.unique(drawn)) == set(wanted) == {0, 1, 2, 3}
    found = np.bincount(drawn, minlength=row.size)
    chi2 = sum((found[t] - rows * q) ** 2 / (rows * q) for t, q in wanted.items())
    assert chi2 < 16.3  # 3 degrees of freedom: exceeded once in a thousand seeds


def test_noise_is_exponential_of_mean_one() -> None:
    noise = np.sort(exponential_noise(image_streams(1, 0, 2), 100, 200).reshape(-1))
    empirical = np.arange(noise.size) / noise.size
    distance = np.abs(empirical - (1 - np.exp(-noise))).max()
    assert distance < 1.95 / noise.size**0.5  # Kolmogorov: once in a thousand seeds


def test_each_image_has_a_stream_of_its_own() -> None:
    together = exponential_noise(image_streams(3, 0, 4), 2, 5).reshape(4, 2, 5)
    assert np.unique(together).size == together.size
    apart = exponential_noise(image_streams(3, 2, 2), 2, 5).reshape(2, 2, 5)
    assert np.array_equal(together[2:], apart)
    other = exponential_noise(image_streams(4, 0, 4), 2, 5)
    assert not np.isin(other, together).any()


def test_stream_goes_on_from_step_to_step() -> None:
    once = exponential_noise(image_streams(0, 0, 2), 5, 3).reshape(2, 5, 3)
    streams = image_streams(0, 0, 2)
    first, then = (exponential_noise(streams, n, 3).reshape(2, n, 3) for n in (2, 3))
    assert np.array_equal(once, np.concatenate([first, then], axis=1))


@given(st.floats(0, 10), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_guidance_is_the_formula_and_leaves_its_inputs(t: float, seed: int) -> None:
    c, u = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    before = c.copy(), u.copy()
    wanted = (1 + t) * c.astype(np.float64) - t * u.astype(np.float64)
    found = guide(c, u, t)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.array_equal(c, before[0]) and np.array_equal(u, before[1])


def test_published_sampling_is_taken() -> None:
    Sampling(cfg=1.5, top_k=900, top_p=0.96).check(4096, 680)
    Sampling(cfg=0, top_k=0, top_p=1).check(1, 1)
    Sampling(cfg=4, top_k=4096, top_p=1).check(4096, 680)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cfg": -0.1}, "cfg is -0.1, not 0 or more"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"cfg": float("inf")}, "cfg is inf"),
        ({"top_k": 4097}, r"top_k is 4097, not 0 \(all\) to 4096"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0, not above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"cfg": -1, "top_p": 2}, "cfg is -1.*; top_p is 2"),
    ],
)
def test_sampling_out_of_range_is_refused(changed: dict[str, float], message: str) -> None:
    options = {"cfg": 1.5, "top_k": 900, "top_p": 0.96, **changed}
    with pytest.raises(GenerationError, match=message):
        Sampling(**options).check(4096, 680)
