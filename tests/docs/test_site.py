"""The site of the documentation builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import PAGES, ROOT

LOADED = re.compile(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"[^>]*>')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    done = subprocess.run(
        [*command, "-d", folder / "doctrees", ".", folder / "html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_of_the_docs_is_on_the_site(site: Path) -> None:
    for page in PAGES:
        if page.parent.name == "docs":
            assert (site / "docs" / f"{page.stem}.html").is_file(), page
    assert 'url=docs/index.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_an_option_in_a_text_is_not_broken_by_a_phone(site: Path) -> None:
    page = (site / "docs" / "engines.html").read_text(encoding="utf-8")
    assert re.search(r'<code class="[^"]*\bshort\b[^"]*"><span class="pre">--target<', page)
    assert "_static/site.css" in page
    assert "nowrap" in (site / "_static" / "site.css").read_text(encoding="utf-8")


def test_the_reference_is_made_from_the_program(site: Path) -> None:
    commands = (site / "docs" / "commands.html").read_text(encoding="utf-8")
    for option in ("--encoder-bits", "--require-key", "--second-opinion"):
        assert option in commands
    # A line of an example is a line of code, under the word that says so.
    export = commands[commands.index('id="arvg-trt-export"') :]
    code = html.unescape(re.sub("<[^>]+>", "", export[: export.index("Options")]))
    for line in ("arvg-trt export cosmos-mini-di8x8 out/ws", "arvg-trt export onnx out/mine"):
        assert any(each.startswith(line) for each in code.splitlines()), line
    api = (site / "docs" / "api.html").read_text(encoding="utf-8")
    for name in ("Workspace.quantize", "Generator.generate", "ImageTokenizer.encode"):
        assert f'id="arvg_trt.{name}"' in api


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        for script, link in LOADED.findall(page.read_text(encoding="utf-8")):
            assert not re.match(r"(https?:)?//", script or link), (page.name, script or link)
