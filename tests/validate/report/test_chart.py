"""Where a chart puts values, and what it says of them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.validate.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Series,
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
    pitch = (WIDTH - LEFT - RIGHT) / 4
    high, low = TOP, HEIGHT - BOTTOM
    expected = [(0, high), (1, (high + low) / 2), (3, low)]
    for (x, y), (k, height) in zip(centres(found), expected, strict=True):
        assert x == pytest.approx(LEFT + (k + 0.5) * pitch, abs=0.1)
        assert y == pytest.approx(height, abs=0.1)
    (line,) = found.iter("polyline")
    assert len(line.attrib["points"].split()) == 3
    labels = [e.text for e in found.iter("text")]
    assert {"20", "30", "40", "blocks.0", "blocks.1", "head"} <= set(labels)


def test_a_hover_names_every_value_and_what_is_missing_or_without_error() -> None:
    dots = Series("Weight", (40.0, None, math.inf, 20.0), "good")
    titles = [e.text for e in drawn(dots).iter("title")]
    assert titles == [
        "blocks.0.qkv\nWeight 40.0 dB",
        "blocks.0.<fc1>\nWeight \u2013",
        "blocks.1.qkv\nWeight \u221e",
        "head\nWeight 20.0 dB",
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
