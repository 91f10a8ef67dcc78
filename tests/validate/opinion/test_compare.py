"""Outputs of two ways of running: what agrees, and what never may pass for agreement."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest

from arvg_trt.errors import AccuracyError
from arvg_trt.numerics.noise import sqnr_db
from arvg_trt.validate.opinion.by_torch import opinion_of_torch
from arvg_trt.validate.opinion.compare import figure_opinions, largest_errors
from arvg_trt.validate.opinion.facts import FIGURE_DB, TORCH_ERROR, FigureOpinion

RNG = np.random.default_rng(0)


def outputs(*values: object) -> list[dict[str, np.ndarray]]:
    return [{"y": np.asarray(value, np.float32)} for value in values]


def test_the_largest_difference_is_over_all_runs_and_relative_to_the_rms() -> None:
    ours, theirs = outputs([1.0, 2.0], [3.0, 4.5]), outputs([1.0, 2.0], [3.0, 4.0])
    largest, relative, equal = largest_errors(ours, theirs)
    assert (largest, equal) == (0.5, 1.0)
    assert relative == pytest.approx(0.5 / math.sqrt((1 + 4 + 9 + 16) / 4))


def test_integers_are_counted_and_the_worst_output_is_told() -> None:
    a = [{"i": np.array([1, 2, 3, 4]), "j": np.array([1, 1]), "y": np.zeros(2, np.float32)}]
    b = [{"i": np.array([1, 2, 3, 9]), "j": np.array([1, 1]), "y": np.zeros(2, np.float32)}]
    assert largest_errors(a, b) == (0.0, 0.0, 0.75)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_one_side_is_an_infinite_difference(odd: float) -> None:
    good, bad = outputs([1.0, 2.0]), outputs([1.0, odd])
    assert largest_errors(good, bad)[0] == largest_errors(bad, good)[0] == math.inf
    found = opinion_of_torch("g", good, bad)
    assert not found.agrees and found.max_error is None
    assert json.loads(msgspec.json.encode(found))["max_error"] is None


def test_nan_on_both_sides_is_no_agreement_and_a_mask_is() -> None:
    both = outputs([1.0, math.nan])
    assert largest_errors(both, both)[0] == math.inf
    mask = outputs([1.0, -math.inf])
    assert largest_errors(mask, mask)[0] == 0.0
    assert opinion_of_torch("g", mask, mask).agrees


def test_another_shape_is_refused() -> None:
    with pytest.raises(AccuracyError, match=r"y is \[2\] where ours is \[1\]"):
        largest_errors(outputs([1.0]), outputs([1.0, 2.0]))


def test_nothing_in_common_is_no_agreement() -> None:
    ours, theirs = outputs([1.0]), [{"z": np.zeros(1, np.float32)}]
    assert not opinion_of_torch("g", ours, theirs).agrees


@pytest.mark.parametrize(("error", "agrees"), [(0.9, True), (1.1, False)])
def test_torch_agrees_up_to_the_limit_of_an_export(error: float, agrees: bool) -> None:
    exact = RNG.normal(size=4000).astype(np.float32)
    rms = float(np.sqrt(np.mean(np.square(exact.astype(np.float64)))))
    other = exact.copy()
    other[7] += error * TORCH_ERROR * rms
    assert opinion_of_torch("g", outputs(other), outputs(exact)).agrees is agrees


@pytest.mark.parametrize(("other", "agrees"), [(4, True), (6, False)])
def test_a_few_tokens_may_be_others(other: int, agrees: bool) -> None:
    ours = [{"indices": np.zeros(1000, np.int32)}]
    theirs = [{"indices": np.zeros(1000, np.int32)}]
    theirs[0]["indices"][:other] = 1
    found = opinion_of_torch("encoder", ours, theirs)
    assert found.agrees is agrees and found.equal == 1 - other / 1000
    assert found.relative_error is None


def sides(noise: float) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(3)
    exact = rng.normal(size=(2, 500)).astype(np.float32)
    own = exact + (noise * rng.normal(size=exact.shape)).astype(np.float32)
    return outputs(*exact), outputs(*own)


def test_a_figure_is_the_sqnr_over_all_runs() -> None:
    fp32, qdq = sides(0.01)
    (found,) = figure_opinions("g", "polygraphy", (fp32, qdq), (fp32, qdq))
    stacked = [np.stack([run["y"] for run in side]) for side in (fp32, qdq)]
    assert found.ours_db == found.theirs_db == pytest.approx(sqnr_db(*stacked))
    assert found.agrees and found.samples == 2


def test_a_figure_that_is_another_elsewhere_differs() -> None:
    """A session that left the rounding out would measure too little error, and be found out."""
    (found,) = figure_opinions("g", "torch", sides(0.01), sides(0.02))
    assert found.apart_db == pytest.approx(6.02, abs=0.01) and not found.agrees
    edge = msgspec.structs.replace(found, theirs_db=(found.ours_db or 0.0) + 0.9 * FIGURE_DB)
    assert edge.agrees


def test_no_error_at_all_agrees_with_none_and_with_nothing_else() -> None:
    constant = outputs([[5.0, 5.0]])
    (same,) = figure_opinions("g", "torch", (constant, constant), (constant, constant))
    assert same.ours_db is None and same.agrees and same.apart_db == 0
    other = outputs([[5.0, 5.1]])
    (found,) = figure_opinions("g", "torch", (constant, constant), (constant, other))
    assert found.apart_db == math.inf and not found.agrees


def test_integers_and_what_is_not_finite_have_no_figure() -> None:
    tokens = [{"i": np.array([1, 2])}]
    assert figure_opinions("g", "torch", (tokens, tokens), (tokens, tokens)) == []
    odd = outputs([math.nan])
    assert figure_opinions("g", "torch", (odd, odd), (odd, odd)) == []


def test_facts_of_a_report_before_these_fields_are_read() -> None:
    old = '{"candidate":"fp32","graph":"g","outputs":1,"max_error":0.0,"agrees":true}'
    from arvg_trt.validate.opinion.facts import SecondOpinion

    found = msgspec.json.decode(old, type=SecondOpinion)
    assert (found.by, found.samples, found.limit) == ("polygraphy", 1, "")
    figure = FigureOpinion(graph="g", output="y", by="torch", ours_db=1.0, theirs_db=1.0, samples=1)
    assert msgspec.json.decode(msgspec.json.encode(figure), type=FigureOpinion) == figure
