"""Gate expressions: what is read, what is refused, what passes."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import RecipeError
from arvg_trt.validate.metric_names import TITLES, metric_names, parse_gates_of
from arvg_trt.validate.report.gates import Gate, evaluate, parse_gate, parse_gates
from arvg_trt.validate.report.schema import METRIC_NAMES
from arvg_trt.workspace.facts import ModelKind

KNOWN = ("psnr", "psnr_drop", "token_agreement", "qdq.psnr")


@given(
    st.sampled_from(KNOWN),
    st.sampled_from(["<=", "<", ">=", ">", "=="]),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_gate_reads_back_from_its_text(metric: str, operator: str, threshold: float) -> None:
    gate = Gate(metric, operator, threshold)
    assert parse_gate(str(gate), KNOWN) == gate


def test_spaces_and_prefixes_are_read() -> None:
    assert parse_gate(" qdq.psnr  >= 3e1 ", KNOWN) == Gate("qdq.psnr", ">=", 30.0)
    assert str(parse_gate("psnr_drop<=0.5", KNOWN)) == "psnr_drop<=0.5"


@pytest.mark.parametrize(
    "text", ["", "psnr", "psnr>=", "psnr=30", "psnr=>30", "psnr>=thirty", "psnr>=nan", "30<=psnr"]
)
def test_malformed_gates_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="METRIC OPERATOR NUMBER"):
        parse_gate(text, KNOWN)


@pytest.mark.parametrize(
    ("kind", "wanted", "other"),
    [
        ("custom", "output_sqnr_db", "latent_sqnr_db"),
        ("tokenizer", "latent_sqnr_db", "output_sqnr_db"),
        ("generator", "logits_sqnr_db", "output_sqnr_db"),
    ],
)
def test_an_unknown_metric_names_those_of_this_kind_of_model(
    kind: ModelKind, wanted: str, other: str
) -> None:
    names, title = metric_names(kind), TITLES[kind]
    assert wanted in names and f"qdq.{wanted}" in names and other not in names
    with pytest.raises(RecipeError) as caught:
        parse_gates_of(kind, ["sqnr>=30"])
    assert f"no metric 'sqnr' of {title}" in caught.value.what
    offered = str(caught.value.do).removeprefix("use ").split(", ")
    assert wanted in offered and {*offered} <= {*names}
    assert parse_gates([f"{wanted}>=30", "speedup>=1"], names, title)
    with pytest.raises(RecipeError, match=f"no metric '{other}' of {title}"):
        parse_gates([f"{other}>=30"], names, title)


def test_every_metric_is_one_of_some_kind() -> None:
    kinds: tuple[ModelKind, ...] = get_args(ModelKind)
    assert {name for kind in kinds for name in metric_names(kind)} == {*METRIC_NAMES}
    assert "encoder.speedup" in metric_names("tokenizer")
    assert "encoder.speedup" not in metric_names("generator")
    assert not any(name.startswith("tokens.") for name in metric_names("custom"))


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_gate("psnr_dorp<=0.5", KNOWN)
    assert "no metric 'psnr_dorp'" in caught.value.what
    assert caught.value.do is not None and caught.value.do.startswith("use psnr_drop")


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("psnr>=30", 30.0, True),
        ("psnr>30", 30.0, False),
        ("psnr_drop<=0.5", 0.5, True),
        ("psnr_drop<0.5", 0.5, False),
        ("token_agreement==1", 1.0, True),
        ("token_agreement==1", 0.999, False),
    ],
)
def test_gates_pass_and_fail_at_the_threshold(text: str, value: float, passed: bool) -> None:
    gate = parse_gate(text, KNOWN)
    (result,) = evaluate([gate], {gate.metric: value})
    assert (result.passed, result.value) == (passed, value)
    assert (result.reason is None) == passed


def test_a_metric_that_was_not_measured_fails_its_gate() -> None:
    results = evaluate(parse_gates(["psnr<=99", "psnr_drop<=9"], KNOWN), {"psnr": None})
    assert [r.passed for r in results] == [False, False]
    assert results[0].reason == "psnr was not measured"


def test_no_error_at_all_passes_a_decibel_gate() -> None:
    (result,) = evaluate(parse_gates(["psnr>=99"], KNOWN), {"psnr": math.inf})
    assert result.passed and result.value is None
    assert result.reason is not None and "infinite" in result.reason
