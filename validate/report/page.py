"""Render a page of tables, figures and images as Markdown, or as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...extras import require_packages
from .charts.chart import NARROW, WIDE
from .charts.drawing import Drawing, svg
from .pictures.rows import MOST_BYTES, TIMES, ImageRow, data_uri, first_times, fitting

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

    `folded` tables open on a click in HTML. Those with `filters`, the names of some columns, can be
    filtered there by a text and by these columns; a row may stand for several `nouns`, whose names
    are its `members`.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: bool = False
    filters: tuple[str, ...] = ()
    nouns: str = "rows"
    members: tuple[tuple[str, ...], ...] = ()

    @property
    def count(self) -> int:
        """Return how many nouns the rows stand for."""
        return sum(map(len, self.members)) if self.members else len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """Hold a main number of the headline."""

    label: str
    value: str
    detail: str
    level: Level = "plain"


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
    charts: tuple[Drawing, ...] = ()
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


def marked(text: str) -> Any:
    """Return a text as HTML, in which what stands between two backticks is code."""
    import markupsafe

    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def to_html(page: Page) -> str:
    """Return the page as one HTML file: styles and images inside, nothing loaded from outside.

    It has MOST_BYTES at most, unless tables alone take more: the last images are left out.
    """
    room = MOST_BYTES - len(_html(replace(page, image_rows=())).encode())
    shown = fitting(page.image_rows, room)
    left = len(page.image_rows) - len(shown)
    more = f" {left} more lie in the folder samples beside this page." if left else ""
    caption = page.image_rows_caption + more
    return _html(replace(page, image_rows=shown, image_rows_caption=caption if shown else more))


def _html(page: Page) -> str:
    require_packages("report")
    import jinja2
    import markupsafe

    templates = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["marked"] = marked
    environment.filters["svg"] = lambda chart, width: markupsafe.Markup(svg(chart, width))
    environment.filters["is_number"] = lambda cell: bool(_NUMBER.fullmatch(str(cell)))
    # The one program that the page may run, by its digest: a name from outside cannot be another.
    program = (templates / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode("ascii")
    return environment.get_template("report.html.j2").render(
        page=page,
        chart_widths={"wide": WIDE, "narrow": NARROW},
        times=TIMES,
        first_times=first_times(page.image_rows),
        program=markupsafe.Markup(program),
        digest=digest,
    )


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
        if image_row.detail:
            yield from (image_row.detail, "")
        yield _row(tuple(image.caption for image in image_row.images))
        yield _row(tuple("---" for _ in image_row.images))
        yield _row(tuple(f"![{image.caption}]({image.file})" for image in image_row.images))
    if page.notes:
        yield from ("", "## How it was measured", "")
        yield from (f"- {note}" for note in page.notes)
