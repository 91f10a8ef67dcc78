"""Where a chart puts values, and what it says of them."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.validate.report.charts.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    LONGEST_LABEL,
    NARROW,
    RIGHT,
    TOP,
    WIDE,
    Chart,
    Series,
    axis_labels,
    grid_step,
    svg,
)

NAMES = ("blocks.0.qkv", "blocks.0.<fc1>", "blocks.1.qkv", "head")


def drawn(*series: Series) -> ElementTree.Element:
    chart = Chart(title="Sites & all", caption="", unit="dB", names=NAMES, series=series)
    return ElementTree.fromstring(svg(chart))


def centres(found: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in found.iter("circle")]


def test_values_lie_at_their_name_and_height() -> None:
    found = drawn(Series("Output", (40.0, 30.0, None, 20.0), "accent", joined=True))
    pitch = (WIDE - LEFT - RIGHT) / 4
    high, low = TOP, HEIGHT - BOTTOM
    expected = [(0, high), (1, (high + low) / 2), (3, low)]
    for (x, y), (k, height) in zip(centres(found), expected, strict=True):
        assert x == pytest.approx(LEFT + (k + 0.5) * pitch, abs=0.1)
        assert y == pytest.approx(height, abs=0.1)
    (line,) = found.iter("polyline")
    assert len(line.attrib["points"].split()) == 3
    labels = [e.text for e in found.iter("text")]
    assert {"20", "30", "40", "blocks.0", "blocks.1", "head"} <= set(labels)


def test_the_axis_has_its_unit_above_the_topmost_number() -> None:
    found = drawn(Series("Output", (40.0, 30.0, None, 20.0), "accent"))
    texts = {e.text: float(e.attrib["y"]) for e in found.iter("text")}
    assert 0 < texts["dB"] < texts["40"] - 10


def test_a_hover_names_every_value_and_what_is_missing_or_without_error() -> None:
    dots = Series("Weight", (40.0, None, math.inf, 20.0), "good")
    titles = [e.text for e in drawn(dots).iter("title")]
    assert titles == [
        "blocks.0.qkv\nWeight 40.00 dB",
        "blocks.0.<fc1>\nWeight \u2013",
        "blocks.1.qkv\nWeight \u221e",
        "head\nWeight 20.00 dB",
    ]
    assert not list(drawn(dots).iter("polyline"))


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e4))
def test_grid_lines_are_round_and_about_six(low: float, span: float) -> None:
    step = grid_step(low, low + span)
    digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(digits - d) for d in (1, 2, 5)) < 1e-6
    assert 2 <= span / step <= 6 + 1e-6


def test_equal_values_are_drawn_too() -> None:
    (point, *_) = centres(drawn(Series("Output", (30.0,) * 4, "accent")))
    assert TOP <= point[1] <= HEIGHT - BOTTOM


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        drawn(Series("Output", (None, math.inf, None, None), "accent"))


def test_a_line_has_a_gap_between_two_graphs() -> None:
    series = Series("Output", (40.0, 30.0, 25.0, 20.0), "accent", joined=True)
    graphs = ("encoder", "encoder", "decoder", "decoder")
    chart = Chart(title="T", caption="", unit="dB", names=NAMES, series=(series,), groups=graphs)
    lines = list(ElementTree.fromstring(svg(chart)).iter("polyline"))
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_all_is_inside_the_drawing(width: int) -> None:
    names = tuple(f"decoder.{part}.{k}" for part in ("in", "mid", "up", "out") for k in range(9))
    values = tuple(float(k) for k in range(36))
    chart = Chart(
        title="T", caption="", unit="dB", names=names, series=(Series("Output", values, "good"),)
    )
    found = ElementTree.fromstring(svg(chart, width))
    assert found.attrib["viewBox"].split()[2] == str(width)
    assert all(LEFT < x < width - RIGHT for x, _ in centres(found))
    below = [e for e in found.iter("text") if "text-anchor" not in e.attrib]
    ends = [(float(e.attrib["x"]), LETTER * len(e.text or "")) for e in below]
    assert ends and all(x + long <= width for x, long in ends)
    assert all(x + long < after for (x, long), (after, _) in pairwise(ends))


def test_sites_of_one_prefix_are_told_apart_on_the_axis() -> None:
    """An exporter that numbers its operators calls them so."""
    names = tuple(f"p2o.{'MatMul' if k % 3 else 'Conv'}.{k}" for k in range(40))
    values = Series("Output", (20.0,) * len(names), "accent")
    chart = Chart(title="", caption="", unit="dB", names=names, series=(values,))
    for width in (WIDE, NARROW):
        found = ElementTree.fromstring(svg(chart, width))
        labels = [e.text for e in found.iter("text") if str(e.text).startswith("p2o")]
        assert len(labels) >= 2 and len({*labels}) == len(labels) and {*labels} <= {*names}


def test_a_hierarchy_is_labelled_by_its_first_parts() -> None:
    assert axis_labels(NAMES) == [(0, "blocks.0"), (2, "blocks.1"), (3, "head")]
    of_one = ("encoder.down.a", "encoder.down.b", "encoder.down.c", "encoder.up.a")
    assert axis_labels(of_one) == list(enumerate(of_one))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab/.0", min_size=1, max_size=60), min_size=1, unique=True))
def test_labels_are_short_and_none_is_there_twice(names: list[str]) -> None:
    labels = [label for _, label in axis_labels(names)]
    assert len({*labels}) == len(labels)
    assert all(len(label) <= LONGEST_LABEL + len("100: ") for label in labels)


def test_a_long_name_keeps_its_end() -> None:
    names = tuple(f"/model/encoder/layers.{k}/self_attn/q_proj/MatMul" for k in range(12))
    for k, label in axis_labels(names):
        assert label == f"\u2026{k}/self_attn"[:12] + "\u2026proj/MatMul"
    alike = [f"layers.0/self_attn/{kind}_proj/MatMul" for kind in "qkv"]
    numbered = [label for _, label in axis_labels(["head", *alike])]
    assert numbered == ["head", *(f"{k}: layers.0/sel\u2026proj/MatMul" for k in (2, 3, 4))]
