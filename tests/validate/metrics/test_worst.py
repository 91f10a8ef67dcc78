"""The worst of many samples, against sorting all of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import AccuracyError
from arvg_trt.validate.metrics.worst import Worst, shown_candidate

SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(math.inf)))


@given(SCORES, st.integers(0, 5))
def test_the_least_scores_are_kept_in_order(scores: list[float], most: int) -> None:
    kept = Worst[int](most)
    for k, score in enumerate(scores):
        kept.add(score, k)
    assert kept.items() == sorted(range(len(scores)), key=lambda k: scores[k])[:most]


def test_what_is_no_number_has_no_place() -> None:
    with pytest.raises(AccuracyError, match="NaN"):
        Worst[str](2).add(math.nan, "a")


def test_items_need_no_order_of_their_own() -> None:
    kept = Worst[object](2)
    for score in (1.0, 1.0, 1.0, 0.5):
        kept.add(score, object())
    assert len(kept.items()) == 2


def test_what_is_shown_is_the_engine_else_the_graph_else_anything() -> None:
    assert shown_candidate(["twin", "qdq", "engine"]) == "engine"
    assert shown_candidate(["twin", "qdq"]) == "qdq"
    assert shown_candidate(["twin"]) == "twin"
    assert shown_candidate([]) is None
