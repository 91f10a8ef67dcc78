"""The blocks of a page of the documentation, with what its author says of each.

A block is a fence with a language. Comments right above it, which no reader sees, say what a test
has to know: `<!-- needs: hub -->` (it cannot run here: its commands are parsed alone),
`<!-- exit: 8 -->` (the code that its last command ends with), `<!-- output: COMMAND -->` (the text
is what that command prints). `<!-- begins with: out/demo -->` anywhere names what a page's reader
already has.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"(?P<notes>(?:^ *<!--[^\n]*-->\n)*)^ *```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!-- (?P<key>needs|exit|output): (?P<value>.+?) -->")
HAS = re.compile(r"<!-- begins with: (?P<value>.+?) -->")
INLINE = re.compile(r"`(arvg-trt [^`]+)`")
FILE_NAME = re.compile(r"# (?P<name>[\w.-]+\.toml)\b")


@dataclass(frozen=True)
class Block:
    """A fence of a page; `line` is that of its first line of text, counted from 1."""

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def needs(self) -> str | None:
        return self.notes.get("needs")

    @property
    def exit_code(self) -> int:
        return int(self.notes.get("exit", 0))

    @property
    def file(self) -> str | None:
        """The name of the file that the text is, where its first line says it."""
        found = FILE_NAME.match(self.text)
        return found["name"] if found else None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, as a shell takes them; comments are left out."""
        joined = self.text.replace("\\\n", " ")
        parts = (part for line in joined.splitlines() for part in line.split(" && "))
        lines = (shlex.split(part, comments=True) for part in parts)
        return [words for words in lines if words]


def blocks_of(page: Path) -> list[Block]:
    """Every fence of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page.name,
            line=text.count("\n", 0, found.start("text")) + 1,
            language=found["language"],
            text=dedent(found["text"]),
            notes={note["key"]: note["value"] for note in NOTE.finditer(found["notes"])},
        )
        for found in FENCE.finditer(text)
    ]


def inline_commands(page: Path) -> list[str]:
    """The command lines of ours in the text between fences, as `arvg-trt COMMAND ...`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in INLINE.findall(text)]


def begins_with(page: Path) -> list[str]:
    """Return what the reader of a page has before it begins."""
    return [
        place.strip()
        for found in HAS.finditer(page.read_text(encoding="utf-8"))
        for place in found["value"].split(",")
    ]
