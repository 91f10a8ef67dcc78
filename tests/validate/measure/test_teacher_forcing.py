"""Graphs of candidates, fed what FP32's are fed: here small functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError
from arvg_trt.numerics.noise import sqnr_db
from arvg_trt.validate.measure.teacher_forcing import (
    ComparedGraph,
    TeacherForcedRun,
    measure_teacher_forced,
)

Arrays = Mapping[str, np.ndarray]


@dataclass
class Doubler:
    """`y` = 2 x (1 + error), `inner` = x + 1, changed by `change`."""

    error: float = 0.0
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        x = feeds["x"]
        made: dict[str, Any] = {"y": 2 * x * (1 + self.error), "inner": self.change(x + 1)}
        return {name: made[name] for name in outputs or made}


def graph(candidate: Doubler, restore: Mapping[str, Any]) -> ComparedGraph:
    return ComparedGraph(
        reference=Doubler(),
        candidates={"qdq": candidate},
        outputs=("y",),
        sites={"a.fc": "inner"},
        restore=restore,
    )


def runs(*values: np.ndarray) -> list[TeacherForcedRun]:
    return [TeacherForcedRun(f"sample {k}", "pass", {"x": v}) for k, v in enumerate(values)]


X = [np.random.default_rng(k).normal(size=(3, 4)) for k in range(2)]


def test_outputs_without_logits_are_compared_by_graph_and_name() -> None:
    found = measure_teacher_forced(runs(*X), {"pass": graph(Doubler(0.01), {})}, lambda done: None)
    (row,) = found["qdq"].outputs
    assert row.output == "pass/y" and row.sqnr_db == pytest.approx(40)
    assert found["qdq"].logits is None and found["qdq"].sites == {}


def test_sites_are_compared_after_their_folds_are_taken_back() -> None:
    folded = Doubler(change=lambda x: x / 4 - 1 + 1e-3)
    made = graph(folded, {"qdq": {"a.fc": lambda value: (value + 1) * 4}})
    found = measure_teacher_forced(runs(*X), {"pass": made}, lambda done: None)
    inner = np.stack(X) + 1
    assert found["qdq"].sites["a.fc"] == pytest.approx(sqnr_db(inner, inner + 4e-3))
    plain = measure_teacher_forced(
        runs(*X), {"pass": graph(folded, {"qdq": {}})}, lambda done: None
    )
    assert plain["qdq"].sites["a.fc"] < 3
    exact = measure_teacher_forced(
        runs(*X), {"pass": graph(Doubler(), {"qdq": {}})}, lambda done: None
    )
    assert exact["qdq"].sites == {"a.fc": None}


def test_values_that_are_not_finite_are_refused_by_graph_and_sample() -> None:
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(AccuracyError, match="pass/y of qdq gave 12 non-finite") as refusal,
    ):
        measure_teacher_forced(runs(*X), {"pass": graph(Doubler(np.inf), {})}, lambda done: None)
    assert refusal.value.where == "sample 0"


def test_no_samples_are_refused() -> None:
    with pytest.raises(AccuracyError, match="no samples"):
        measure_teacher_forced([], {"pass": graph(Doubler(), {})}, lambda done: None)


def test_each_side_is_fed_what_its_own_run_before_gave() -> None:
    """Errors of both runs add up: 1.01 twice; FP32 doubles twice."""
    first = runs(X[0])[0]
    then = TeacherForcedRun("sample 0", "pass", {}, carried=lambda given: {"x": given["y"]})
    found = measure_teacher_forced(
        [first, then], {"pass": graph(Doubler(0.01), {})}, lambda done: None
    )
    x = X[0]
    wanted, made = np.stack([2 * x, 4 * x]), np.stack([2.02 * x, 4.0804 * x])
    assert found["qdq"].outputs[0].sqnr_db == pytest.approx(sqnr_db(wanted, made))
