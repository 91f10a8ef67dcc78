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

from ...extras import require_packages
from .chart import NARROW, WIDE, Chart, svg

Level = Literal["good", "bad", "warn", "plain"]
# A figure with its unit, or the range between two: such a cell stays on one line.
_FIGURE = r"[+\-\u2212]?(?:\d[\d.]*|\u221e) ?[^\s\d,]{0,4}"
_NUMBER = re.compile(rf"{_FIGURE}(?: to {_FIGURE})?")


@dataclass(frozen=True, slots=True)
class Badge:
    """Hold the text of a cell that must be seen, and how it is coloured."""

    text: str
    level: Level

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Link:
    """Hold the text of a cell that leads to a file, by its address relative to the page."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


Cell = str | Badge | Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Hold cells as text; every row is as long as the header.

    `folded` tables open on a click in HTML.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """Hold a main number of the headline."""

    label: str
    value: str
    detail: str
    level: Level = "plain"


@dataclass(frozen=True, slots=True)
class Image:
    """Hold an image, [H, W, 3] uint8, and its file relative to the page."""

    caption: str
    file: str
    pixels: NDArray[np.uint8]

    def png(self) -> bytes:
        from PIL import Image as PilImage

        stream = io.BytesIO()
        PilImage.fromarray(self.pixels).save(stream, format="PNG")
        return stream.getvalue()


@dataclass(frozen=True, slots=True)
class ImageRow:
    """Hold images that belong side by side, four in a row or as many as there are."""

    title: str
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Hold what both renderings show, in this order; charts only the HTML, for all is in tables."""

    title: str
    subtitle: str
    verdict: Badge
    warnings: tuple[str, ...] = ()
    key_figures: tuple[KeyFigure, ...] = ()
    image_rows: tuple[ImageRow, ...] = ()
    image_rows_caption: str = ""
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
    environment.filters["svg"] = lambda chart, width: markupsafe.Markup(svg(chart, width))
    environment.globals["chart_widths"] = {"wide": WIDE, "narrow": NARROW}
    environment.filters["is_number"] = lambda cell: bool(_NUMBER.fullmatch(str(cell)))
    return environment.get_template("report.html.j2").render(page=page)


def _data_uri(image: Image) -> str:
    return "data:image/png;base64," + base64.b64encode(image.png()).decode("ascii")


def _cell(value: Cell) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    if isinstance(value, Link):
        return f"[{text}]({value.address})"
    return f"**{text}**" if isinstance(value, Badge) and value.level != "plain" else text


def _row(cells: tuple[Cell, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _markdown_lines(page: Page) -> Iterator[str]:
    yield from (f"# {page.title}", "", page.subtitle, "", f"**{page.verdict}**", "")
    for warning in page.warnings:
        yield from (f"> Warning: {warning}", "")
    for key_figure in page.key_figures:
        detail = f" ({key_figure.detail})" if key_figure.detail else ""
        yield f"- {key_figure.label}: **{key_figure.value}**{detail}"
    for table in page.tables:
        yield from ("", f"## {table.title}", "")
        if table.caption:
            yield from (table.caption, "")
        yield table_markdown(table)
    if page.image_rows:
        yield from ("", "## Images", "", page.image_rows_caption)
    for image_row in page.image_rows:
        yield from ("", f"### {image_row.title}", "")
        yield _row(tuple(image.caption for image in image_row.images))
        yield _row(tuple("---" for _ in image_row.images))
        yield _row(tuple(f"![{image.caption}]({image.file})" for image in image_row.images))
    if page.notes:
        yield from ("", "## How it was measured", "")
        yield from (f"- {note}" for note in page.notes)
