"""Name the kinds of charts that a page can show, and draw each of them as SVG.

A page asks of a chart its title, its caption, its series for a legend, and the drawing at a width.
Whatever is drawn stands in a table too, for those who do not see it.
"""

from __future__ import annotations

from typing import TypeAlias

from .chart import WIDE, Chart
from .chart import svg as chart_svg
from .strips import Strips
from .strips import svg as strips_svg

Drawing: TypeAlias = Chart | Strips


def svg(drawing: Drawing, width: int = WIDE) -> str:
    """Return a chart as an SVG element of a width, in the colours of the page.

    Raises:
        ValueError: there is nothing finite to draw.
    """
    if isinstance(drawing, Strips):
        return strips_svg(drawing, width)
    return chart_svg(drawing, width)
