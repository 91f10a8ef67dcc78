"""Outputs of quantized graphs against FP32: figures over all samples, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.errors import AccuracyError
from arvg_trt.validate.metrics.outputs import OutputAccuracy, measure_outputs, worst
from arvg_trt.validate.metrics.parts import OutputPart


@dataclass(frozen=True)
class Recorded:
    """Graphs that return what was recorded for a sample's number."""

    outputs: tuple[dict[str, NDArray], ...]

    def run(self, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return self.outputs[int(arrays["k"])]


def measure(
    reference: list[dict[str, NDArray]], found: list[dict[str, NDArray]]
) -> tuple[OutputAccuracy, ...]:
    samples = [(f"s{k}", {"k": np.array(k)}) for k in range(len(reference))]
    pair = Recorded(tuple(reference)), Recorded(tuple(found))
    return measure_outputs(samples, pair[0], {"qdq": pair[1]}, lambda done: None)["qdq"]


def test_figures_are_those_of_all_samples_as_one_vector() -> None:
    rng = np.random.default_rng(0)
    exact = [rng.normal(0, 3**k, (1, 4, 5)).astype(np.float32) for k in range(3)]
    moved = [(x + rng.normal(0, 0.1, x.shape)).astype(np.float32) for x in exact]
    (found,) = measure([{"g/y": x} for x in exact], [{"g/y": x} for x in moved])
    a, b = (np.concatenate(v).astype(np.float64).ravel() for v in (exact, moved))
    assert found.output == "g/y" and found.equal is None
    assert found.sqnr_db == pytest.approx(-10 * math.log10(((a - b) @ (a - b)) / (a @ a)))
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.max_error == pytest.approx(np.abs(a - b).max())


def test_equal_outputs_have_no_error_and_infinite_decibels() -> None:
    x = np.float32([[1, -2]])
    (found,) = measure([{"g/y": x}], [{"g/y": x.copy()}])
    assert (found.sqnr_db, found.max_error) == (None, 0.0)
    assert found.cosine == pytest.approx(1)
    assert worst([found])["output_sqnr_db"] == math.inf


def test_integers_are_counted() -> None:
    (found,) = measure([{"g/ids": np.array([[1, 2, 3, 4]])}], [{"g/ids": np.array([[1, 2, 3, 5]])}])
    assert found == OutputAccuracy(
        output="g/ids", equal=0.75, sums={"equal": (3.0,), "values": (4.0,)}
    )


SCORES = OutputPart(axis=1, channels=(4, 5), rms=0.1, largest_rms=90.0, sqnr_db=12.5)


def test_gates_see_the_worst_output() -> None:
    outputs = [
        OutputAccuracy(output="a", sqnr_db=30.0, max_error=0.1, cosine=0.99, part=SCORES),
        OutputAccuracy(output="b", sqnr_db=20.0, max_error=0.05, cosine=0.999),
        OutputAccuracy(output="c", equal=0.5),
        OutputAccuracy(output="d", equal=0.9),
    ]
    assert worst(outputs) == {
        "output_sqnr_db": 20.0,
        "output_part_sqnr_db": 12.5,
        "output_cosine": 0.99,
        "output_max_error": 0.1,
        "output_equal": 0.5,
    }
    assert set(worst([]).values()) == {None}


def test_bad_outputs_are_refused_by_sample_and_output() -> None:
    good = {"g/y": np.ones((1, 3), np.float32)}
    nan = {"g/y": np.float32([[1, np.nan, 1]])}
    with pytest.raises(AccuracyError, match="g/y of qdq gave 1 non-finite of 3 values") as caught:
        measure([good, good], [good, nan])
    assert caught.value.where == "s1"
    with pytest.raises(AccuracyError, match=r"shape \[1, 2\] where FP32 gave \[1, 3\]"):
        measure([good], [{"g/y": np.ones((1, 2), np.float32)}])
    with pytest.raises(AccuracyError, match="zero everywhere"):
        measure([{"g/y": np.zeros((1, 3), np.float32)}], [good])
    with pytest.raises(AccuracyError, match="no samples"):
        measure([], [])


def test_infinities_of_masks_are_compared_by_place_and_the_rest_by_value() -> None:
    exact = {"g/y": np.float32([[3, -np.inf, np.nan, 4]])}
    near = {"g/y": np.float32([[3, -np.inf, np.nan, 5]])}
    (found,) = measure([exact], [near])
    assert found.sqnr_db == pytest.approx(10 * math.log10(25)) and found.max_error == 1.0
    for place, value in ((0, np.nan), (1, np.inf), (1, 0.0), (2, 0.0), (3, -np.inf)):
        other = near["g/y"].copy()
        other[0, place] = value
        with pytest.raises(AccuracyError, match="1 non-finite of 4 values"):
            measure([exact], [{"g/y": other}])


def test_an_output_without_parts_is_its_own_worst_part() -> None:
    whole = OutputAccuracy(output="a", sqnr_db=30.0, max_error=0.1, part=None)
    assert worst([whole])["output_part_sqnr_db"] == 30.0
    # A report of an earlier version has not looked for parts: no figure, which a gate fails on.
    older = OutputAccuracy(output="a", sqnr_db=30.0, max_error=0.1)
    assert worst([older])["output_part_sqnr_db"] is None
