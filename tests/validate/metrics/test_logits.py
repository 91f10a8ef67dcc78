"""Divergence, agreement and cross-entropy against their formulas, one position at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.validate.metrics.logits import LogitsAccumulator, LogitsAccuracy, perplexity

ROWS, LENGTH, VOCAB = 3, 5, 11


def measured(p: np.ndarray, q: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> LogitsAccuracy:
    """In two batches."""
    tally = LogitsAccumulator()
    for part in (slice(0, 1), slice(1, None)):
        tally.add(p[part], q[part], tokens[part], rows[part])
    return tally.result()


def case(seed: int, noise: float = 0.3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32) * 3
    q = p + noise * rng.normal(size=p.shape).astype(np.float32)
    return p, q, rng.integers(0, VOCAB, (ROWS, LENGTH)), np.array([True, False, True])


def test_every_number_is_its_formula_position_by_position() -> None:
    p, q, tokens, rows = case(1)
    kl = first = shared = signal = error = 0.0
    losses = {"fp32": 0.0, "own": 0.0}
    for r in range(ROWS):
        for t in range(LENGTH):
            a, b = ([math.exp(float(x)) for x in v[r, t]] for v in (p, q))
            a, b = [x / sum(a) for x in a], [x / sum(b) for x in b]
            kl += sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
            best = [sorted(range(VOCAB), key=lambda k, v=v: -v[k])[:5] for v in (a, b)]
            first += best[0][0] == best[1][0]
            shared += len(set(best[0]) & set(best[1])) / 5
            centred = [
                [float(x) - float(np.mean(v[r, t], dtype=np.float64)) for x in v[r, t]]
                for v in (p, q)
            ]
            signal += sum(x * x for x in centred[0])
            error += sum((x - y) ** 2 for x, y in zip(*centred, strict=True))
            if rows[r]:
                losses["fp32"] -= math.log(a[tokens[r, t]])
                losses["own"] -= math.log(b[tokens[r, t]])
    found = measured(p, q, tokens, rows)
    count = ROWS * LENGTH
    assert found.positions == count and found.tokens == 2 * LENGTH
    assert found.kl == pytest.approx(kl / count, rel=1e-9)
    assert found.top1 == first / count and 0 < found.top1 < 1
    assert found.top5 == pytest.approx(shared / count, rel=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / error), rel=1e-9)
    assert found.cross_entropy == pytest.approx(losses["own"] / found.tokens, rel=1e-9)
    assert found.cross_entropy_fp32 == pytest.approx(losses["fp32"] / found.tokens, rel=1e-9)
    assert perplexity(found.cross_entropy) == pytest.approx(math.exp(losses["own"] / found.tokens))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-50, 50))
def test_a_constant_added_to_the_logits_of_a_position_changes_nothing(
    seed: int, constant: float
) -> None:
    p, q, tokens, rows = (v.astype(np.float64) if v.dtype == np.float32 else v for v in case(seed))
    moved = measured(p, q + constant, tokens, rows)
    fixed = measured(p, q, tokens, rows)
    for name in ("kl", "top1", "top5", "sqnr_db", "cross_entropy"):
        assert getattr(moved, name) == pytest.approx(getattr(fixed, name), rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.001, 5))
def test_divergence_is_never_negative(seed: int, noise: float) -> None:
    p, q, tokens, rows = case(seed, noise)
    assert measured(p, q, tokens, rows).kl >= 0


def test_the_same_logits_differ_by_nothing() -> None:
    p, _, tokens, rows = case(2)
    found = measured(p, p, tokens, rows)
    assert (found.kl, found.top1, found.top5, found.sqnr_db) == (0.0, 1.0, 1.0, None)
    assert found.cross_entropy == found.cross_entropy_fp32


def test_a_vocabulary_of_fewer_than_five_tokens_shares_them_all() -> None:
    p, q, tokens, rows = case(3)
    found = measured(p[..., :3], q[..., :3], tokens % 3, rows)
    assert found.top5 == 1.0


def test_positions_have_their_own_figures_whose_mean_is_the_whole() -> None:
    p, q, tokens, rows = case(4)
    found = measured(p, q, tokens, rows)
    assert len(found.kl_by_position) == len(found.top1_by_position) == LENGTH
    for t in range(LENGTH):
        alone = measured(p[:, t : t + 1], q[:, t : t + 1], tokens[:, t : t + 1], rows)
        assert found.kl_by_position[t] == pytest.approx(alone.kl, rel=1e-12)
        assert found.top1_by_position[t] == pytest.approx(alone.top1, rel=1e-12)
    assert np.mean(found.kl_by_position) == pytest.approx(found.kl, rel=1e-12)


def test_rows_of_other_lengths_count_where_they_are() -> None:
    p, q, tokens, rows = case(5)
    tally = LogitsAccumulator()
    tally.add(p[:1, :2], q[:1, :2], tokens[:1, :2], rows[:1])
    tally.add(p[1:], q[1:], tokens[1:], rows[1:])
    found = tally.result()
    last = measured(p[1:, -1:], q[1:, -1:], tokens[1:, -1:], rows[1:])
    assert found.kl_by_position[-1] == pytest.approx(last.kl, rel=1e-12)
