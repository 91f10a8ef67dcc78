"""Gate expressions: what is read, what is refused, what passes."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.commands.support.figures import gate_line
from arvg_trt.errors import RecipeError
from arvg_trt.validate.facts import ValidationFacts
from arvg_trt.validate.intervals.figure import Figure
from arvg_trt.validate.metric_names import TITLES, metric_names, parse_gates_of
from arvg_trt.validate.report.gates import (
    FigureAt,
    Gate,
    chance_text,
    evaluate,
    metric_of,
    needs,
    parse_gate,
    parse_gates,
)
from arvg_trt.validate.report.schema import METRIC_NAMES
from arvg_trt.workspace.facts import ModelKind

KNOWN = ("psnr", "psnr_drop", "token_agreement", "qdq.psnr", "psnr_min", "compression")


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
    "text",
    [
        *("", "psnr", "psnr>=", "psnr=30", "psnr=>30", "psnr>=thirty", "psnr>=nan", "30<=psnr"),
        *("psnr>=30@", "psnr>=30@%", "psnr>=30@95", "psnr@95%", "30>=psnr>=20", "20<=psnr<=nan"),
        *("20<=psnr<30", "psnr>=30@95%x"),
    ],
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


def figure_at(low: float | None, high: float | None, n: int = 9) -> FigureAt:
    def found(metric: str, level: float) -> Figure:
        why = None if low is not None else "1 image"
        return Figure(value=0.3, n=n, low=low, high=high, why=why)

    return found


@pytest.mark.parametrize(
    ("text", "low", "high", "verdict"),
    [
        ("psnr_drop<=0.5@95%", 0.2, 0.4, "passed"),
        ("psnr_drop<=0.5@95%", 0.2, 0.5, "passed"),
        ("psnr_drop<0.5@95%", 0.2, 0.5, "inconclusive"),
        ("psnr_drop<=0.3@95%", 0.2, 0.4, "inconclusive"),
        ("psnr_drop<=0.1@95%", 0.2, 0.4, "failed"),
        ("psnr_drop>=0.1@95%", 0.2, 0.4, "passed"),
        ("0.1<=psnr_drop<=0.5@95%", 0.2, 0.4, "passed"),
        ("0.25<=psnr_drop<=0.35@95%", 0.2, 0.4, "inconclusive"),
        ("0.25<=psnr_drop<=0.5@95%", 0.2, 0.4, "inconclusive"),
        ("0.5<=psnr_drop<=0.9@95%", 0.2, 0.4, "failed"),
    ],
)
def test_a_gate_at_a_level_reads_the_bad_end(
    text: str, low: float, high: float, verdict: str
) -> None:
    (result,) = evaluate(parse_gates([text], KNOWN), {"psnr_drop": 0.3}, figure_at(low, high))
    assert (result.verdict, result.passed) == (verdict, verdict == "passed")
    assert (result.low, result.high, result.n) == (low, high, 9)
    assert (result.reason is None) == result.passed


def test_an_open_gate_says_how_many_more_would_decide() -> None:
    (result,) = evaluate(
        parse_gates(["psnr_drop<=0.35@95%"], KNOWN), {"psnr_drop": 0.3}, figure_at(0.2, 0.4)
    )
    assert result.verdict == "inconclusive" and result.more is not None and result.more > 9
    assert result.reason is not None and f"about {result.more} more samples would" in result.reason
    (at,) = evaluate(
        parse_gates(["psnr_drop<=0.3@95%"], KNOWN), {"psnr_drop": 0.3}, figure_at(0.2, 0.4)
    )
    assert at.more is None and "no number of samples" in str(at.reason)


def test_a_figure_without_an_interval_leaves_its_gate_open() -> None:
    (result,) = evaluate(
        parse_gates(["psnr_drop<=0.5@95%"], KNOWN), {"psnr_drop": 0.3}, figure_at(None, None, 1)
    )
    assert result.verdict == "inconclusive" and "no interval (1 image)" in str(result.reason)


def test_there_is_no_chance_in_what_is_counted_or_without_error() -> None:
    gates = parse_gates(["compression>=3@95%", "psnr>=30@95%"], KNOWN)
    found = evaluate(gates, {"compression": 3.1, "psnr": math.inf}, figure_at(None, None))
    assert [r.verdict for r in found] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("value", "verdict"), [(29.9, "failed"), (30.0, "passed"), (31.0, "passed"), (31.1, "failed")]
)
def test_a_band_has_two_ends(value: float, verdict: str) -> None:
    (gate,) = parse_gates(["30 <= psnr <= 31"], KNOWN)
    assert str(gate) == "30<=psnr<=31" and metric_of(str(gate)) == "psnr"
    assert evaluate([gate], {"psnr": value})[0].verdict == verdict


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("psnr_min>=30@95%", "has no interval"),
        ("psnr==30@95%", "no interval is one number"),
        ("psnr>=30@20%", "no level of confidence"),
        ("psnr>=30@nan%", "no level of confidence"),
        ("31<=psnr<=30", "nothing is in that band"),
    ],
)
def test_what_no_interval_can_decide_is_refused(text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        parse_gate(text, KNOWN)


@given(
    st.sampled_from(["psnr", "qdq.psnr"]),
    st.floats(-1e6, 1e6),
    st.floats(0, 1e6),
    st.sampled_from([None, 90.0, 95.0, 99.5]),
)
def test_a_band_reads_back_from_its_text(
    metric: str, least: float, width: float, level: float | None
) -> None:
    gate = Gate(metric, "<=", least + width, least, level)
    assert parse_gate(str(gate), KNOWN) == gate


def test_a_text_of_a_report_that_is_no_gate_is_its_own_metric() -> None:
    assert metric_of("psnr_drop<=0.3@95%") == metric_of("0<=psnr_drop<=1") == "psnr_drop"
    assert metric_of("no gate") == "no gate"


def test_what_would_decide_has_its_unit() -> None:
    (result,) = evaluate(
        parse_gates(["speedup>=1.35@95%"], METRIC_NAMES), {"speedup": 1.3}, figure_at(1.2, 1.4)
    )
    assert f"over 9 rounds: about {result.more} more rounds would decide" in str(result.reason)
    assert needs(1, "psnr") == "1 more sample would decide"
    assert needs(2, "load_ms") == "2 more starts would decide"
    assert needs(None, "latency_ms") == "no number of rounds decides"


@pytest.mark.parametrize("value", [1.00956, 1.3])
def test_a_line_has_one_verdict_and_names_the_gate_that_decides(value: float) -> None:
    (gate,) = evaluate(parse_gates(["speedup>=1.2"], METRIC_NAMES), {"speedup": value})
    doubted = ValidationFacts(metrics={"speedup": value}, inconclusive=("speedup",))
    line = gate_line(gate, doubted)
    assert line.startswith(f"gate speedup>=1.2: {gate.verdict} ({value:.6g}, judged by the figure")
    assert "speedup>=1.2@95% decides by its interval" in line and "inconclusive" not in line
    assert "chance" not in gate_line(gate, ValidationFacts(metrics={"speedup": value}))


@pytest.mark.parametrize("text", ["speedup==1.2", "speedup>=1.2@95%", "rfid<=3"])
def test_no_gate_is_named_where_none_can_decide_by_an_interval(text: str) -> None:
    assert "decides" not in chance_text(text)


def test_a_misspelt_metric_has_one_answer() -> None:
    """`topp1` is no slip of `top5` or of `lpips`."""
    with pytest.raises(RecipeError) as caught:
        parse_gates(["topp1>=0.9"], METRIC_NAMES)
    assert caught.value.do == "use top1"
    with pytest.raises(RecipeError) as caught:
        parse_gates(["accuracy>=0.9"], METRIC_NAMES)
    assert str(caught.value.do).count(",") == 2
