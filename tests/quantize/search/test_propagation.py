"""Curves from a graph's own loss to the end's, and the best split between two graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.quantize.search.propagation import ResponseCurve, balance, end_loss


@settings(deadline=None, max_examples=40)
@given(st.floats(0.3, 2.5), st.floats(-4, 4), st.floats(-6, 3))
def test_a_power_law_is_followed_within_and_beyond_its_points(
    exponent: float, factor: float, at: float
) -> None:
    points = [(x, 10**factor * x**exponent) for x in (1e-4, 1e-3, 1e-1)]
    response = ResponseCurve(tuple(points))
    x = 10.0**at
    assert response(x) == pytest.approx(10**factor * x**exponent, rel=1e-6)
    numeric = (response(x * 1.0001) - response(x * 0.9999)) / (0.0002 * x)
    assert response.slope(x) == pytest.approx(numeric, rel=1e-3)


def test_between_points_it_is_straight_in_logarithms() -> None:
    response = ResponseCurve(((1.0, 1.0), (100.0, 10.0), (1e4, 1e5)))
    assert response(10.0) == pytest.approx(10**0.5)
    assert response(1e3) == pytest.approx(1e3)


def test_points_without_loss_are_left_out_and_noise_does_not_make_it_fall() -> None:
    response = ResponseCurve(((1e-3, 0.0), (1.0, 2.0), (10.0, 1.5), (100.0, 8.0)))
    assert response(1.0) == pytest.approx(2.0) and response(10.0) == pytest.approx(2.0)
    assert response(0.0) == 0.0 and response.slope(5.0) > 0


@pytest.mark.parametrize("points", [(), ((0.0, 1.0),), ((1e-3, 0.0),)])
def test_without_a_usable_point_losses_count_as_they_are(
    points: tuple[tuple[float, float], ...],
) -> None:
    response = ResponseCurve(points)
    assert response(0.25) == 0.25 and response.slope(0.25) == 1.0


def test_one_point_is_a_ratio() -> None:
    assert ResponseCurve(((2.0, 6.0),))(0.5) == pytest.approx(1.5)


def test_the_best_split_of_bits_between_two_graphs_is_found() -> None:
    """Exhaustively: an encoder whose end loss grows as a square root, a linear decoder."""
    responses = {
        "encoder": ResponseCurve(tuple((x, 0.3 * x**0.5) for x in (1e-6, 1e-2))),
        "decoder": ResponseCurve(((1.0, 2.0),)),
    }
    rng = np.random.default_rng(0)
    gains = 10 ** rng.uniform(-3, 0, 6)
    graphs = ["encoder"] * 3 + ["decoder"] * 3
    plans = [c for c in itertools.product((2, 4, 6), repeat=6) if sum(c) <= 22]

    def sums(plan: tuple[int, ...]) -> dict[str, float]:
        found = dict.fromkeys(responses, 0.0)
        for graph, gain, bits in zip(graphs, gains, plan, strict=True):
            found[graph] += float(gain * 4.0**-bits)
        return found

    def solve(weights: Mapping[str, float]) -> tuple[int, ...]:
        return min(plans, key=lambda p: sum(weights[g] * v for g, v in sums(p).items()))

    chosen, loss = balance(responses, solve, sums)
    best = min(end_loss(responses, sums(plan)) for plan in plans)
    assert loss == pytest.approx(end_loss(responses, sums(chosen)))
    assert loss <= best * 1.02
    first = solve({"encoder": 1.0, "decoder": 1.0})  # which adds what cannot be added
    assert loss < end_loss(responses, sums(first))
