"""The part of an output that its SQNR hides: found by channel, in sums that do not grow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.validate.metrics.outputs import OutputAccumulator, OutputAccuracy
from arvg_trt.validate.metrics.parts import (
    MOST_CHANNELS,
    ChannelSums,
    OutputPart,
    channel_axes,
    groups_of_scales,
)

BOXES, SCORES = 4, 18
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def detector(seed: int, axis: int = 1) -> Pair:
    """An output [1, 22, 300] of boxes up to 320 and scores up to 1, and the same with errors."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 320, (1, BOXES, 300))
    scores = rng.uniform(0, 1, (1, SCORES, 300)) ** 8
    exact = np.concatenate([boxes, scores], axis=1)
    noise = np.concatenate([np.full((BOXES, 1), 3.0), np.full((SCORES, 1), 0.03)])
    moved = exact + rng.standard_normal(exact.shape) * noise
    first, second = (np.moveaxis(each, 1, axis).astype(np.float32) for each in (exact, moved))
    return first, second


def measured(pairs: list[Pair]) -> OutputAccuracy:
    found = OutputAccumulator(parts=True)
    for k, (exact, moved) in enumerate(pairs):
        found.add(exact, moved, f"s{k}")
    return found.result("g/y")


def part_of(pairs: list[Pair]) -> OutputPart:
    part = measured(pairs).part
    assert isinstance(part, OutputPart)
    return part


@pytest.mark.parametrize("axis", [1, 2])
def test_scores_beside_boxes_have_an_sqnr_of_their_own(axis: int) -> None:
    pairs = [detector(seed, axis) for seed in range(3)]
    part, whole = part_of(pairs), measured(pairs).sqnr_db
    assert (part.axis, part.channels) == (axis, tuple(range(BOXES, BOXES + SCORES)))
    exact, moved = (
        np.concatenate([np.take(p[k], part.channels, axis) for p in pairs]).astype(np.float64)
        for k in (0, 1)
    )
    signal, noise = np.sum(exact**2), np.sum((exact - moved) ** 2)
    assert part.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    assert part.rms == pytest.approx(np.sqrt(np.mean(exact**2)))
    assert whole is not None and part.sqnr_db is not None and whole - part.sqnr_db > 15
    assert not part.about_mean and part.largest_rms == pytest.approx(185, rel=0.05)


def test_any_order_of_channels_finds_the_same_part() -> None:
    exact, moved = detector(0)
    order = np.random.default_rng(1).permutation(BOXES + SCORES)
    part, shuffled = part_of([(exact, moved)]), part_of([(exact[:, order], moved[:, order])])
    assert shuffled.sqnr_db == pytest.approx(part.sqnr_db)
    assert {int(order[c]) for c in shuffled.channels} == set(part.channels)


def test_channels_of_like_scales_are_one_part() -> None:
    rng = np.random.default_rng(0)
    exact = (rng.standard_normal((2, 6, 40)) * np.array([1, 2, 4, 8, 16, 32])[:, None]).astype("f4")
    assert measured([(exact, exact + np.float32(0.1))]).part is None


def test_nearly_constant_channels_are_measured_by_what_they_vary() -> None:
    rng = np.random.default_rng(0)
    exact = (48.0 + 0.01 * rng.standard_normal((64, 2))).astype(np.float32)
    moved = exact + (0.005 * rng.standard_normal(exact.shape)).astype(np.float32)
    part, whole = part_of([(exact, moved)]), measured([(exact, moved)]).sqnr_db
    assert part.about_mean and part.channels == (0, 1)
    wide, error = exact.astype(np.float64), moved.astype(np.float64) - exact
    varies = np.square(wide - wide.mean(axis=0)).sum() / np.square(error).sum()
    assert part.sqnr_db == pytest.approx(10 * math.log10(varies)) and part.sqnr_db < 8
    assert whole is not None and whole > 70
    constant = np.full((8, 2), 48.0, np.float32)  # one that never varies has no scale of its own
    assert measured([(constant, constant + np.float32(0.1))]).part is None


def test_an_exact_part_has_no_number_and_masks_are_left_out() -> None:
    exact, moved = detector(0)
    exact[0, :, 7] = moved[0, :, 7] = -np.inf
    part = part_of([(exact, moved)])
    assert part.channels == tuple(range(BOXES, BOXES + SCORES)) and part.sqnr_db is not None
    equal = part_of([(exact, exact)])
    assert equal.sqnr_db is None


def test_channels_of_zeros_are_in_no_part() -> None:
    assert groups_of_scales(np.array([0.0, 3.0, 100.0, 2.0, 0.0])) == [(2,), (1, 3)]
    assert groups_of_scales(np.zeros(3)) == []
    exact = np.zeros((1, 3, 5), np.float32)
    exact[0, 0], exact[0, 1] = 100.0, 1.0
    exact[0, :2, 0] *= -1
    part = part_of([(exact, exact + np.float32(0.1))])
    assert part.channels == (1,) and part.sqnr_db == pytest.approx(20.0, abs=1e-4)


def test_an_axis_that_changes_its_size_holds_no_channels() -> None:
    one, other = detector(0), detector(1)
    cut = (other[0][..., :50], other[1][..., :50])
    assert part_of([one, cut]).axis == 1
    sums = ChannelSums()
    for exact, moved in (one, cut):
        swapped = [np.moveaxis(each, 1, 2).astype(np.float64) for each in (exact, moved)]
        sums.add(swapped[0], swapped[1], np.isfinite(swapped[0]))
    found = sums.worst()
    assert found is not None and found.axis == 2


def test_which_axes_may_hold_channels() -> None:
    assert channel_axes((1, 22, 2100)) == (1, 2)
    assert channel_axes((8, 10)) == (1,)
    assert channel_axes((1, 3, 320, 320)) == (1,)
    assert channel_axes((1, 40, 40, 85)) == (1,)
    assert channel_axes((1, 160, 160, 3)) == (3,)
    assert channel_axes((7,)) == () and channel_axes((1, MOST_CHANNELS + 1)) == ()
