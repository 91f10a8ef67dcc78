"""Sums of errors by range: nothing is lost, and what is not finite is said to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.validate.diagnose.noise import WHOLE, BucketedNoise, Buckets

squares = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


@given(st.integers(1, 300))
def test_ranges_cover_every_number_once(count: int) -> None:
    buckets = Buckets.of_range(count, "position")
    index = buckets.index(np.arange(count))
    assert len(buckets.names) <= 8
    assert sorted(set(index.tolist())) == list(range(len(buckets.names)))
    assert all(np.diff(index) >= 0)


@given(squares, squares)
def test_ranges_add_up_to_the_whole(signal: list[float], noise: list[float]) -> None:
    count = min(len(signal), len(noise))
    rows = np.array([signal[:count]]), np.array([noise[:count]])
    parts, whole = BucketedNoise(Buckets.of_range(count, "position")), BucketedNoise(WHOLE)
    parts.add(*rows, np.arange(count))
    whole.add(*rows)
    assert parts.signal.sum() == pytest.approx(whole.signal.sum())
    assert parts.noise.sum() == pytest.approx(whole.noise.sum())


def test_scales_begin_where_the_token_maps_do() -> None:
    buckets = Buckets.of_scales((1, 2, 3))
    assert buckets.names == ("scale 1x1", "scale 2x2", "scale 3x3")
    assert buckets.index(np.arange(14)).tolist() == [0] + [1] * 4 + [2] * 9


def test_no_error_has_no_ratio_and_nan_no_measure() -> None:
    noise = BucketedNoise()
    noise.add(np.ones(3), np.zeros(3))
    assert noise.decibels() is None and noise.is_finite and noise.relative == 0
    noise.add(np.ones(1), np.array([np.nan]))
    assert noise.decibels() == -math.inf and not noise.is_finite
    assert noise.relative == math.inf
