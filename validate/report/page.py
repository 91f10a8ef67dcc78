"""Render a page of tables, figures and images as Markdown, or as one HTML file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...packages import require_packages
from .chart import Chart, svg

Mood = Literal["good", "bad", "warn", "plain"]
_NUMBER = re.compile(r"[+\-\u2212]?[\d\u221e]")


@dataclass(frozen=True, slots=True)
class Mark:
    """Hold the text of a cell that must be seen, and how it is coloured."""

    text: str
    mood: Mood

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Hold cells as text; every row is as long as the header.

    `folded` tables open on a click in HTML.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | Mark, ...], ...]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Hold a main number of the headline."""

    label: str
    value: str
    detail: str
    mood: Mood = "plain"


@dataclass(frozen=True, slots=True)
class Frame:
    """Hold an image, [H, W, 3] uint8, and its file relative to the page."""

    caption: str
    file: str
    image: NDArray[np.uint8]

    def png(self) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(self.image).save(stream, format="PNG")
        return stream.getvalue()


@dataclass(frozen=True, slots=True)
class Strip:
    """Hold images that belong side by side, four in a row or as many as there are."""

    title: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Hold what both renderings show, in this order; charts only the HTML, for all is in tables."""

    title: str
    subtitle: str
    verdict: Mark
    warnings: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    strips: tuple[Strip, ...] = ()
    strips_caption: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def to_markdown(page: Page) -> str:
    """Return the page as GitHub Markdown; images are links to their files."""
    return "\n".join(_markdown_lines(page)).rstrip() + "\n"


def table_markdown(table: Table) -> str:
    """Return one table without its title."""
    lines = [_row(table.header), _row(tuple("---" for _ in table.header))]
    lines += [_row(row) for row in table.rows]
    return "\n".join(lines)


def to_html(page: Page) -> str:
    """Return the page as one HTML file: styles and images inside, nothing loaded from outside."""
    require_packages("report")
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["svg"] = lambda chart: markupsafe.Markup(svg(chart))
    environment.filters["is_number"] = lambda cell: bool(_NUMBER.match(str(cell)))
    return environment.get_template("report.html.j2").render(page=page)


def _data_uri(frame: Frame) -> str:
    return "data:image/png;base64," + base64.b64encode(frame.png()).decode("ascii")


def _cell(value: str | Mark) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    return f"**{text}**" if isinstance(value, Mark) and value.mood != "plain" else text


def _row(cells: tuple[str | Mark, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _markdown_lines(page: Page) -> Iterator[str]:
    yield from (f"# {page.title}", "", page.subtitle, "", f"**{page.verdict}**", "")
    for warning in page.warnings:
        yield from (f"> Warning: {warning}", "")
    for figure in page.figures:
        detail = f" ({figure.detail})" if figure.detail else ""
        yield f"- {figure.label}: **{figure.value}**{detail}"
    for table in page.tables:
        yield from ("", f"## {table.title}", "")
        if table.caption:
            yield from (table.caption, "")
        yield table_markdown(table)
    if page.strips:
        yield from ("", "## Pictures", "", page.strips_caption)
    for strip in page.strips:
        yield from ("", f"### {strip.title}", "")
        yield _row(tuple(frame.caption for frame in strip.frames))
        yield _row(tuple("---" for _ in strip.frames))
        yield _row(tuple(f"![{frame.caption}]({frame.file})" for frame in strip.frames))
    if page.notes:
        yield from ("", "## How it was measured", "")
        yield from (f"- {note}" for note in page.notes)
