"""Bisection decides by planted times which sites are kept: a pure function of what blocks take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.engines.faster.decide import FIRST_PAIRS, MOST_MS, MOST_PAIRS, Judged, decide
from arvg_trt.engines.faster.pairs import LEAST_PAIRS, Pairs, median_interval

FACTOR = 1.02


@dataclass
class Planted:
    """Time sites by planted milliseconds, FP32 and rounded, with noise of a busy machine.

    `common` moves both of a pair, `own` each, `stalls` is how often one waits for other work.
    """

    times: dict[str, tuple[float, float]]
    common: float = 0.0
    own: float = 0.0
    stalls: float = 0.0
    seed: int = 0
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def __call__(self, names: Sequence[str], rounds: int) -> Pairs:
        self.asked.append(tuple(names))
        sums = np.sum([self.times[name] for name in names], axis=0)
        both = np.exp(self.common * self.rng.standard_normal((rounds, 1)))
        noise = np.exp(self.own * self.rng.standard_normal((rounds, 2)))
        stalled = np.where(self.rng.random((rounds, 2)) < self.stalls, 5.0, 1.0)
        plain, quantized = (sums * both * noise * stalled).T
        return Pairs(tuple(plain), tuple(quantized))


def kept(judged: Sequence[Judged]) -> set[str]:
    return {name for each in judged if each.verdict == "kept" for name in each.names}


SITES = st.lists(
    st.tuples(st.floats(0.05, 50), st.sampled_from([0.3, 0.7, 0.85, 1.25, 2.0, 4.0])),
    min_size=1,
    max_size=24,
)


@given(sites=SITES, cuts=st.integers(1, 4), noise=st.booleans(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_exactly_the_sites_that_are_planted_slower_are_removed(
    sites: list[tuple[float, float]], cuts: int, noise: bool, seed: int
) -> None:
    """Also where the machine is busy: noise, and one run in twenty takes five times as long."""
    times = {f"s{k}": (ms, ms / speed) for k, (ms, speed) in enumerate(sites)}
    faster = {f"s{k}" for k, (_, speed) in enumerate(sites) if speed > 1}
    quiet = {"common": 0.3, "own": 0.02, "stalls": 0.05} if noise else {}
    timer = Planted(times, seed=seed, **quiet)
    names = list(times)
    blocks = [names[k::cuts] for k in range(cuts)]
    judged = decide(blocks, timer, FACTOR, least_share=0)
    assert kept(judged) == faster
    assert sorted(name for each in judged for name in each.names) == sorted(names)
    assert all(any(set(each.names) <= set(block) for block in blocks) for each in judged)


@given(
    ratios=st.lists(st.floats(0.9, 1.2), min_size=1, max_size=12),
    own=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_it_ends_whatever_the_noise(ratios: list[float], own: float, seed: int) -> None:
    timer = Planted({f"s{k}": (1.0, 1 / r) for k, r in enumerate(ratios)}, own=own, seed=seed)
    judged = decide([list(timer.times)], timer, FACTOR)
    doublings = math.ceil(math.log2(MOST_PAIRS / FIRST_PAIRS))
    assert len(timer.asked) <= 1 + (2 * len(ratios) + 1) * (1 + doublings)
    assert all(len(each.pairs) <= MOST_PAIRS for each in judged)
    for each in judged:
        if each.reason is None and each.verdict != "inconclusive":
            speed = each.pairs.speed
            assert (speed.low > FACTOR) == (each.verdict == "kept")


def test_a_site_that_is_as_fast_is_not_kept() -> None:
    timer = Planted({"same": (2.0, 2.0), "won": (4.0, 2.0)}, own=0.05)
    judged = decide([["same", "won"]], timer, FACTOR)
    assert kept(judged) == {"won"}
    assert (
        len(judged[0].pairs) > FIRST_PAIRS
    )  # it was timed again, for its interval held the factor


def test_small_sites_are_judged_together_and_large_ones_alone() -> None:
    times = {f"small{k}": (0.01, 0.005) for k in range(64)} | {"large": (100.0, 200.0)}
    timer = Planted(times)
    judged = decide([list(times)], timer, FACTOR)
    assert kept(judged) == set(times) - {"large"}
    assert ("large",) in [each.names for each in judged]
    assert len(timer.asked) < 20


def test_what_noise_leaves_open_alone_is_decided_together() -> None:
    """Each has 20 % of noise on 10 % of gain; their sum has a tenth of it."""
    calm = {f"s{k}": (1.0, 1 / 1.1) for k in range(100)}

    class Independent(Planted):
        def __call__(self, names: Sequence[str], rounds: int) -> Pairs:
            self.asked.append(tuple(names))
            plain = self.rng.lognormal(0, 0.4, (rounds, len(names))).sum(axis=1)
            quantized = (self.rng.lognormal(0, 0.4, (rounds, len(names))) / 1.1).sum(axis=1)
            return Pairs(tuple(plain), tuple(quantized))

    timer = Independent(calm)
    judged = decide([list(calm)], timer, FACTOR, least_share=0)
    pooled = [each for each in judged if each.reason]
    assert len(pooled) > 20
    assert all(each.verdict == "kept" and "together" in str(each.reason) for each in pooled)


def test_timing_of_a_block_ends_when_it_took_long_enough() -> None:
    timer = Planted({"slow": (MOST_MS, MOST_MS)}, own=0.01)
    (judged,) = decide([["slow"]], timer, FACTOR)
    assert judged.verdict == "inconclusive" and len(judged.pairs) == FIRST_PAIRS


@given(values=st.lists(st.floats(0.1, 10), min_size=1, max_size=70))
def test_interval_holds_the_median_of_the_values(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= np.median(values) <= high
    if len(values) < LEAST_PAIRS:
        assert (low, high) == (0.0, math.inf)
    else:
        assert low in values and high in values


@pytest.mark.parametrize("count", [6, 8, 16, 33, 64])
def test_interval_covers_the_true_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(1)
    draws = rng.standard_cauchy((4000, count))
    inside = [low <= 0 <= high for low, high in map(median_interval, draws)]
    assert 0.94 < np.mean(inside) <= 1
    if count > 8:  # with fewer values the steps from one pair of ends to the next are large
        assert np.mean(inside) < 0.985


def test_times_that_make_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        Pairs((1.0,), (1.0, 2.0))
    with pytest.raises(ValueError, match="make no pairs"):
        Pairs((), ())
