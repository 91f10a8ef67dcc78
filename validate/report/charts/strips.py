"""Draw how values spread, a strip of dots a row over one axis from zero, as SVG for a page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from .chart import LEFT, RIGHT, WIDE, Series, grid_step

ROW = 44  # the height of a row: its name, then its dots
ABOVE, BELOW = 8, 30
PERCENTILES = (50, 90, 99)
TICK = 9  # half the height of the mark of the median; the others are lower


@dataclass(frozen=True, slots=True)
class Strip:
    """Hold the values of one row, at least one; `colour` is a colour of the page's style."""

    label: str
    values: tuple[float, ...]
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strips:
    """Hold rows over one axis, in `unit`; `series` is the legend of their colours."""

    title: str
    caption: str
    unit: str
    rows: tuple[Strip, ...]
    series: tuple[Series, ...]


def svg(drawing: Strips, width: int = WIDE) -> str:
    """Return the strips as an SVG element: a dot a value, and a mark a percentile.

    Raises:
        ValueError: a value is not finite, below zero, or there are none.
    """
    every = [value for row in drawing.rows for value in row.values]
    if not every or not all(math.isfinite(value) and value >= 0 for value in every):
        raise ValueError(f"{drawing.title} has no values, or some that cannot be drawn")
    step = grid_step(0, max(every)) * (1 if width == WIDE else 2)
    top = step * max(1, math.ceil(max(every) / step))
    height = ABOVE + ROW * len(drawing.rows) + BELOW
    attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": drawing.title}
    root = Element("svg", attributes)

    def x(value: float) -> str:
        return f"{RIGHT + value / top * (width - RIGHT - LEFT):.1f}"

    for k in range(round(top / step) + 1):
        ends = {"x1": x(k * step), "x2": x(k * step), "y1": str(ABOVE), "y2": str(height - BELOW)}
        SubElement(root, "line", ends, stroke="var(--line)")
        unit = f" {drawing.unit}" if k == round(top / step) else ""
        place = {"x": x(k * step), "y": str(height - BELOW + 18), "text-anchor": "middle"}
        SubElement(root, "text", place).text = f"{k * step:g}{unit}"
    for number, row in enumerate(drawing.rows):
        name, middle = ABOVE + ROW * number + 13, ABOVE + ROW * number + 29
        SubElement(root, "text", x=str(RIGHT), y=str(name)).text = row.label
        style = f"var(--{row.colour})"
        for value in row.values:
            place = {"cx": x(value), "cy": str(middle), "r": "3", "fill-opacity": "0.5"}
            dot = SubElement(root, "circle", place, fill=style)
            SubElement(dot, "title").text = f"{row.label}: {value:.2f} {drawing.unit}"
        for percent in PERCENTILES:
            value, half = float(np.percentile(row.values, percent)), TICK if percent == 50 else 6
            ends = {"x1": x(value), "x2": x(value)}
            ends |= {"y1": str(middle - half), "y2": str(middle + half)}
            mark = SubElement(root, "line", ends, stroke="var(--ink)")
            mark.set("stroke-width", "2" if percent == 50 else "1")
            told = f"{row.label}: p{percent} {value:.2f} {drawing.unit}"
            SubElement(mark, "title").text = told
    indent(root)
    return tostring(root, encoding="unicode")
