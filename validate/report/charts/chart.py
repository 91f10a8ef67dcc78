"""Draw a chart of several rows of numbers over names in order, as SVG for a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from xml.etree.ElementTree import Element, SubElement, indent, tostring

# In units of the drawing: a screen shows the one that fits at about a pixel each.
WIDE, NARROW = 1040, 340
HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 28, 34
UNIT_ABOVE = 12  # the topmost line, whose number is as high
LETTER, GAP = 6.5, 14  # what a letter of a name below the axis takes, and between two names
FEWEST_LABELS, LONGEST_LABEL = 3, 24  # of names below the axis, and letters of one
GRID_LINES = 6
SMALL = 0.1


@dataclass(frozen=True, slots=True)
class Series:
    """Hold values by name, None where there is none; `joined` ones are a line, others dots.

    `colour` is a colour of the page's style.
    """

    label: str
    values: tuple[float | None, ...]
    colour: str
    joined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Hold series over `names`, each as long; `unit` stands behind every value.

    A joined series has a gap where the next name is of another of the `groups`, which are as many
    as names, or none.
    """

    title: str
    caption: str
    unit: str
    names: tuple[str, ...]
    series: tuple[Series, ...]
    groups: tuple[str, ...] = ()


def svg(chart: Chart, width: int = WIDE) -> str:
    """Return the chart as an SVG element, in the colours of the page; a hover names the values.

    Raises:
        ValueError: there is no finite value to draw.
    """
    drawn = [v for s in chart.series for v in s.values if v is not None and math.isfinite(v)]
    if not drawn:
        raise ValueError(f"{chart.title} has no finite value to draw")
    step = grid_step(min(drawn), max(drawn))
    low, high = step * math.floor(min(drawn) / step), step * math.ceil(max(drawn) / step)
    high = high if high > low else low + step
    attributes = {"viewBox": f"0 0 {width} {HEIGHT}", "role": "img", "aria-label": chart.title}
    root = Element("svg", attributes)
    pitch = (width - LEFT - RIGHT) / len(chart.names)

    def x(k: int) -> float:
        return round(LEFT + (k + 0.5) * pitch, 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    for k in range(round((high - low) / step) + 1):
        add_line(root, low + k * step, y(low + k * step), width)
    place = {"x": str(LEFT - 8), "y": str(TOP - UNIT_ABOVE), "text-anchor": "end"}
    SubElement(root, "text", place).text = chart.unit  # of the axis, above its numbers
    add_labels(root, chart.names, x, width)
    groups = chart.groups or ("",) * len(chart.names)
    for series in chart.series:
        style = f"var(--{series.colour})"
        lines: dict[str, list[tuple[float, float]]] = {}
        for k, value in enumerate(series.values):
            if value is not None and math.isfinite(value):
                lines.setdefault(groups[k], []).append((x(k), y(value)))
        for points in lines.values() if series.joined else ():
            path = " ".join(f"{a},{b}" for a, b in points)
            line = {"points": path, "fill": "none", "stroke": style, "stroke-width": "1.5"}
            SubElement(root, "polyline", line)
        for a, b in chain.from_iterable(lines.values()):
            SubElement(root, "circle", cx=str(a), cy=str(b), r="2.6", fill=style)
    for k, name in enumerate(chart.names):
        values = [f"{s.label} {text(s.values[k], chart.unit)}" for s in chart.series]
        place = {"x": f"{LEFT + k * pitch:.1f}", "y": str(TOP), "width": f"{pitch:.1f}"}
        over = SubElement(
            root, "rect", place, height=str(HEIGHT - TOP - BOTTOM), fill="transparent"
        )
        SubElement(over, "title").text = "\n".join([name, *values])
    indent(root)
    return tostring(root, encoding="unicode")


def text(value: float | None, unit: str) -> str:
    """Return a value with its unit, in two decimals, or three digits where these say nothing."""
    if value is None:
        return "\u2013"
    if not math.isfinite(value):
        return "\u221e"
    return f"{value:.3g} {unit}" if 0 < abs(value) < SMALL else f"{value:.2f} {unit}"


def grid_step(low: float, high: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that about GRID_LINES lines cover the range."""
    rough = max(high - low, 1e-9) / GRID_LINES
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))


def add_line(root: Element, value: float, at: float, width: int) -> None:
    ends = {"x1": str(LEFT), "x2": str(width - RIGHT), "y1": str(at), "y2": str(at)}
    SubElement(root, "line", ends, stroke="var(--line)")
    SubElement(
        root, "text", {"x": str(LEFT - 8), "y": str(at + 4), "text-anchor": "end"}
    ).text = f"{value:g}"


def add_labels(root: Element, names: Sequence[str], x: Callable[[int], float], width: int) -> None:
    """Write labels of names below the axis, where there is room."""
    free = 0.0
    for k, label in axis_labels(names):
        if x(k) < free or x(k) + LETTER * len(label) > width:
            continue
        free = x(k) + LETTER * len(label) + GAP
        tick = {"x1": str(x(k)), "x2": str(x(k)), "y1": str(HEIGHT - BOTTOM)}
        SubElement(root, "line", tick, y2=str(HEIGHT - BOTTOM + 5), stroke="var(--soft)")
        place = {"x": str(x(k) - 2), "y": str(HEIGHT - BOTTOM + 19)}
        SubElement(root, "text", place).text = label


def axis_labels(names: Sequence[str]) -> list[tuple[int, str]]:
    """Return labels with the numbers of the names that they begin at, no two labels alike.

    Names in a hierarchy are labelled by their first two parts, where each begins. If that says
    nothing, as of `p2o.Conv.0` and `p2o.Conv.1`, each name is, cut where
    it is long; those that are then alike have their numbers in front.
    """
    firsts = [".".join(name.split(".")[:2]) for name in names]
    begins = [(k, f) for k, f in enumerate(firsts) if k == 0 or f != firsts[k - 1]]
    labels = {label for _, label in begins}
    tells = len(begins) >= min(FEWEST_LABELS, len(names))
    if tells and len(labels) == len(begins) and max(map(len, labels)) <= LONGEST_LABEL:
        return begins
    start = shared_start(names)
    start = start if start > LONGEST_LABEL // 3 else 0
    cut = [shortened(f"\u2026{name[start:]}" if start else name) for name in names]
    seen = Counter(cut)
    return [(k, f"{k + 1}: {c}" if seen[c] > 1 else c) for k, c in enumerate(cut)]


def shared_start(names: Sequence[str]) -> int:
    """Return how many letters all names have in common, up to a dot or a slash."""
    first, last = min(names), max(names)
    alike = len(first) - 1
    for k, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            alike = k
            break
    return 1 + max(first.rfind(".", 0, alike), first.rfind("/", 0, alike))


def shortened(name: str) -> str:
    """Return a name with its middle left out where it is long; most names differ at the end."""
    if len(name) <= LONGEST_LABEL:
        return name
    half = LONGEST_LABEL // 2
    return f"{name[:half]}\u2026{name[1 - half :]}"
