"""The integer program against every choice there is."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.quantize.search.knapsack import EqualChoice, Limit, allocate, least, without_prints

Rows = list[list[float]]


@st.composite
def instances(draw: st.DrawFn) -> tuple[Rows, Rows, float]:
    """Losses over eight orders of magnitude, bytes up to a million, a limit within reach."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    losses = [
        [10.0 ** draw(st.floats(-8, 0)) * draw(st.sampled_from([0.0, 1.0])) for _ in range(n)]
        for n in counts
    ]
    sizes = [[float(draw(st.integers(1, 10**6))) for _ in range(n)] for n in counts]
    low, high = (sum(f(row) for row in sizes) for f in (min, max))
    return losses, sizes, low + draw(st.floats(0, 1)) * (high - low)


def choices(rows: Rows) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(len(row)) for row in rows))


def total(rows: Rows, chosen: Sequence[int]) -> float:
    return math.fsum(row[k] for row, k in zip(rows, chosen, strict=True))


@settings(deadline=None, max_examples=40)
@given(instances())
def test_the_program_finds_the_best_of_all_choices(instance: tuple[Rows, Rows, float]) -> None:
    losses, sizes, most = instance
    chosen = allocate(losses, [Limit(sizes, most)])
    assert chosen is not None and total(sizes, chosen) <= most
    fitting = [c for c in choices(losses) if total(sizes, c) <= most]
    best = min(total(losses, c) for c in fitting)
    assert total(losses, chosen) == pytest.approx(best, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(instances(), st.data())
def test_ties_hold_and_the_best_tied_choice_is_found(
    instance: tuple[Rows, Rows, float], data: st.DataObject
) -> None:
    losses, sizes, _ = instance
    one, other = 0, len(losses) - 1
    tie = EqualChoice((one, len(losses[one]) - 1), (other, len(losses[other]) - 1))
    fitting = [c for c in choices(losses) if (c[one] == tie.one[1]) == (c[other] == tie.other[1])]
    if not fitting:  # one item with one option, tied to one that has others, is always possible
        assert least(sizes, [tie]) > 0
    most = data.draw(st.sampled_from([total(sizes, c) for c in fitting]))
    chosen = allocate(losses, [Limit(sizes, most)], [tie])
    assert chosen is not None and tuple(chosen) in fitting and total(sizes, chosen) <= most
    best = min(total(losses, c) for c in fitting if total(sizes, c) <= most)
    assert total(losses, chosen) == pytest.approx(best, rel=1e-6)
    assert least(sizes, [tie]) == pytest.approx(min(total(sizes, c) for c in fitting))


@settings(deadline=None, max_examples=15)
@given(instances(), st.floats(0, 1))
def test_a_larger_budget_is_never_worse(instance: tuple[Rows, Rows, float], share: float) -> None:
    losses, sizes, most = instance
    smallest = sum(min(row) for row in sizes)
    less = smallest + share * (most - smallest)
    tight, wide = (allocate(losses, [Limit(sizes, m)]) for m in (less, most))
    assert tight is not None and wide is not None
    assert total(losses, wide) <= total(losses, tight) * (1 + 1e-6)


def test_two_limits_hold_together() -> None:
    losses = [[0.0, 1.0, 5.0], [0.0, 2.0, 3.0]]
    one, other = [[9.0, 1.0, 1.0], [9.0, 5.0, 1.0]], [[1.0, 8.0, 1.0], [1.0, 1.0, 9.0]]
    limits = [Limit(one, 10), Limit(other, 9)]
    fitting = [c for c in choices(losses) if total(one, c) <= 10 and total(other, c) <= 9]
    chosen = allocate(losses, limits)
    assert chosen is not None
    assert tuple(chosen) == min(fitting, key=lambda c: total(losses, c))


def test_what_cannot_be_reached_is_none() -> None:
    assert allocate([[0.0, 1.0]], [Limit([[8.0, 4.0]], 3.9)]) is None
    assert least([[8.0, 4.0], [3.0, 7.0]]) == 7


def test_a_limit_holds_to_the_byte() -> None:
    """Solvers' tolerances are relative: of a gigabyte they would be kilobytes."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(10**8, 10**9, (4, 3)).astype(float).tolist()
    losses = (1 / np.array(sizes)).tolist()
    for most in sorted(total(sizes, c) for c in choices(sizes))[::20]:
        chosen = allocate(losses, [Limit(sizes, most - 1)])
        assert chosen is None or total(sizes, chosen) <= most - 1


def test_what_the_solver_prints_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with without_prints():
        os.write(1, b"from a library\n")
    os.write(1, b"result\n")
    out, err = capfd.readouterr()
    assert (out, err) == ("result\n", "")
