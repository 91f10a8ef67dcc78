"""First lines of docstrings are sentences that a reader understands without the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
FOLDERS = tuple(sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} | {"tests"}))
# A first line of these words says what a value is like, and leaves out what the function does.
WORDS_THAT_BEGIN_NO_SENTENCE = re.compile(r"(Of|As|What|Which|Whether)\b")
# The docstring of a case or test says what is expected, in as many words as it takes.
LONG_FIRST_SENTENCES = ("tests",)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield `module:line` and the first line of each docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text:
            line = getattr(node, "lineno", 1)
            yield f"{path.relative_to(ROOT)}:{line}", text.splitlines()[0].strip()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_first_line_begins_like_a_sentence(folder: str) -> None:
    odd = [
        f"{place}: {line}"
        for path in modules(folder)
        for place, line in docstrings(path)
        if WORDS_THAT_BEGIN_NO_SENTENCE.match(line)
    ]
    assert not odd, "\n".join(odd)


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f not in LONG_FIRST_SENTENCES])
def test_a_first_line_is_a_whole_sentence(folder: str) -> None:
    odd = [
        f"{place}: {line}"
        for path in modules(folder)
        for place, line in docstrings(path)
        if not line.endswith(".")
    ]
    assert not odd, "\n".join(odd)


def test_modules_at_the_root_are_held_too() -> None:
    for path in sorted(ROOT.glob("*.py")):
        for place, line in docstrings(path):
            assert line.endswith("."), place
            assert not WORDS_THAT_BEGIN_NO_SENTENCE.match(line), place
