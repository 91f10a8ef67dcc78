"""Use of a codebook against scipy's entropy, by group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from arvg_trt.validate.metrics.codebook import CodebookCounts


def counted(size: int, *parts: np.ndarray) -> CodebookCounts:
    counts = CodebookCounts(size)
    for part in parts:
        counts.add(part)
    return counts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 40))
def test_each_group_has_scipys_entropy_and_parts_add_up(seed: int, groups: int, size: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, size, (5, 3, 4, groups)).astype(np.int32)
    found = counted(size, tokens).result()
    assert found is not None and found.tokens == 60 and len(found.groups) == groups
    for k, group in enumerate(found.groups):
        counts = np.bincount(tokens[..., k].ravel(), minlength=size)
        assert group.perplexity == pytest.approx(np.exp(entropy(counts)), rel=1e-12)
        assert group.used == np.count_nonzero(counts) / size
    assert found.perplexity == pytest.approx(np.mean([g.perplexity for g in found.groups]))
    parts = counted(size, tokens[:2])
    parts.merge(counted(size, tokens[2:]))
    assert parts.result() == counted(size, tokens[:1], tokens[1:]).result() == found


def test_its_ends_are_one_entry_and_all_of_them_as_often() -> None:
    one = counted(8, np.full((2, 4, 4), 5)).result()
    assert one is not None and one.perplexity == 1 and one.groups[0].used == 1 / 8
    every = counted(8, np.tile(np.arange(8), (3, 1))).result()  # tokens of several scales: [N, L]
    assert every is not None and every.perplexity == pytest.approx(8) and every.groups[0].used == 1
    assert CodebookCounts(8).result() is None
