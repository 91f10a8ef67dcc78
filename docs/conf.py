"""Configure Sphinx: `make docs` builds the site, and any warning is an error.

The source folder is the repository's root, so that a link from a page to a result, a recipe or
another page is the same in the repository and on the site.
"""

from __future__ import annotations

import textwrap
from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]

project = "arvg-trt"
author = "the arvg-trt authors"
release = version = installed_version("arvg-trt")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**", "*.md", "benchmarks/results/*.md", "models/README.md"]
exclude_patterns = [".*", "out", "build", "dist", "tests", "training", "README.md"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings as GitHub makes them
default_role = "code"  # one backtick in a docstring is code, as in Markdown
smartquotes = False  # "--target" is no dash
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False

html_theme = "furo"
html_title = f"arvg-trt {release}"
html_extra_path = ["_extra"]  # index.html, which leads to docs/index.html
html_static_path = ["_static"]
html_css_files = ["site.css"]
LONGEST_WORD = 24  # characters of code in a text that a phone shows in one line


def examples_as_code(app: object, context: object, lines: list[str]) -> None:
    """Show the examples of a command as code, a line each: as text they run into one another."""
    found = [line for line in lines if line.startswith("| ")]
    if not found:
        return
    text = textwrap.dedent("\n".join(line[2:].replace("Example: ", " " * 9) for line in found))
    first = lines.index(found[0])
    before, behind = lines[:first], lines[first + len(found) :]
    code = [f"    {line}" for line in text.splitlines()]
    lines[:] = [*before, "", ".. code-block:: bash", "", *code, "", *behind]


def keep_words_whole(app: object, doctree: nodes.document, name: str) -> None:
    """Mark short code in texts: browsers break lines behind each hyphen of it else."""
    for code in doctree.findall(nodes.literal):
        if len(code.astext()) <= LONGEST_WORD:
            code["classes"].append("short")


def setup(app: Any) -> None:
    app.connect("doctree-resolved", keep_words_whole)
    app.connect("sphinx-click-process-description", examples_as_code)
