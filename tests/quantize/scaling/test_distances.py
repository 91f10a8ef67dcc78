"""A candidate has to gain on a typical sample, and in the mean over the halves on all of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.quantize.scaling.distances import SILENT, Off, best, distance, loss, off_of

from ...families.custom.models import small_graph
from ..custom_quantized import custom_graph

errors = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@given(errors, st.floats(1e-3, 0.99) | st.floats(1.01, 1e3))
def test_a_gain_on_every_sample_is_the_gain_of_both_means(values: list[float], gain: float) -> None:
    one, other = off_of([gain * value for value in values]), off_of(values)
    assert one.typical == pytest.approx(gain * other.typical, rel=1e-9)
    assert one.mean == pytest.approx(gain * other.mean, rel=1e-9)
    found = loss([one, one], [other, other])
    assert found.worst == pytest.approx(gain, rel=1e-9)
    assert found.typical == (pytest.approx(gain, rel=1e-9) if gain < 1 else math.inf)


@given(errors)
def test_a_typical_sample_lies_between_the_samples_and_never_above_their_mean(
    values: list[float],
) -> None:
    found = off_of(values)
    assert min(values) * (1 - 1e-9) <= found.typical <= found.mean * (1 + 1e-9)


def test_silence_counts_little_and_what_is_no_number_counts() -> None:
    assert off_of([0.0, 0.0]) == Off(0.0, 0.0)
    assert off_of([0.0, 2.0]).typical == pytest.approx(math.sqrt(2.0 * SILENT))
    assert math.isnan(off_of([1.0, math.nan]).typical)
    assert off_of([1.0, math.inf]) == Off(math.inf, math.inf)
    none = Off(1.0, 1.0)
    for bad in (Off(math.nan, 0.1), Off(0.1, math.nan), Off(math.inf, 0.1)):
        found = loss([bad, none], [none, none])
        assert math.inf in (found.worst, found.typical) and found.typical == math.inf
        assert best({1: found}, 0.0) is None


NONE = [Off(1.0, 1.0)] * 4
WILD = loss([Off(1.6, 0.5), Off(0.3, 0.3), Off(1.1, 0.6), Off(0.3, 0.3)], NONE)  # of DI8x8
RARE = loss([Off(1.5, 0.8), Off(1.2, 0.8), Off(0.9, 0.7), Off(1.3, 0.8)], NONE)  # heavy tails
SURE = loss([Off(0.8, 0.7), Off(0.6, 0.6), Off(0.7, 0.7), Off(0.5, 0.5)], NONE)


def test_all_samples_of_the_worst_half_decide_where_a_candidate_gains_there() -> None:
    assert (SURE.worst, WILD.worst) == (0.8, 1.6) and WILD.typical < SURE.typical
    assert best({1: WILD, 2: SURE}, 0.3) == 2


def test_where_none_gains_there_a_typical_sample_and_the_mean_over_halves_decide() -> None:
    assert WILD.typical == pytest.approx((1.6 * 0.3 * 1.1 * 0.3) ** 0.25)
    assert best({1: RARE, 2: WILD}, 0.3) == 2
    assert best({1: RARE}, 0.0) is None  # a typical row gains on each half, all rows lose
    lost = loss([Off(1.2, 1.1), Off(0.1, 0.1), Off(0.1, 0.1), Off(0.1, 0.1)], NONE)
    assert lost.typical == math.inf and best({1: lost}, 0.0) is None


def test_what_gains_too_little_is_not_taken() -> None:
    little = loss([Off(0.97, 0.97)] * 4, NONE)
    assert best({1: little}, 0.3) is None and best({1: little}, 0.1) == 1
    assert best({}, 0.3) is None


def test_outputs_are_compared_over_their_signal() -> None:
    exact = {"y": [np.array([1.0, 2.0]), np.array([10.0, 0.0])], "z": [np.ones(1), np.ones(1)]}
    found = {"y": [np.array([1.0, 2.5]), np.array([10.0, 3.0])], "z": [np.ones(1), np.zeros(1)]}
    off = distance(found, exact)
    assert off.mean == pytest.approx(9.25 / 105 + 0.5)
    assert off.typical == pytest.approx(math.sqrt((0.25 / 5) * (9 / 100 + 1)))
    tokens = {"indices": [np.array([1, 2]), np.array([3, 4])]}
    assert distance({"indices": [np.array([1, 2]), np.array([3, 9])]}, tokens) == Off(0.25, 0.25)


def test_one_wild_sample_hides_no_gain_on_the_others(tmp_path: Path) -> None:
    """Where sums are compared, its values beyond the range count alone, and nothing is scaled."""
    rng = np.random.default_rng(0)

    def drawn(count: int) -> np.ndarray:
        x = rng.normal(0, 1, (count, 6, 24)).astype(np.float32)
        x[..., 5] *= 50
        return x

    weight = rng.normal(0, 0.2, (24, 16)).astype(np.float32)
    weight[5] /= 50
    calibration = drawn(8)
    calibration[6, :, 5] *= 6
    path = small_graph(
        tmp_path / "g.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": weight}, x=("n", 6, 24)
    )
    own, held_out = custom_graph(path, calibration), drawn(100)
    found = {s: own.sqnr(tmp_path / f"q{s}", held_out, smoothing=s) for s in (0.0, "search")}
    assert found["search"] > found[0.0] + 3, found
