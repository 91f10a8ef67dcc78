"""The README is short, and every link of the docs leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = 130


def anchors_of(page: Path) -> set[str]:
    """Headings of a page as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in plain}


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), (page.name, target)
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), (page.name, target, anchor)


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        text = page.read_text(encoding="utf-8")
        links = [target for target, _ in LINK.findall(text) if target]
        listed = [line for tree in TOCTREE.findall(text) for line in tree.splitlines()]
        links += [f"{line}.md" for line in listed if line and not line.startswith(":")]
        waiting += [(page.parent / target).resolve() for target in links]
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached
