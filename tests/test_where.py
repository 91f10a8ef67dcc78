"""The files and names that docs/where.md leads to exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
PAGE = (ROOT / "docs" / "where.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([\w/]+/?\w+\.(?:py|md))`")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if "`" in line and "|" in line]


def names_of(file: str) -> set[str]:
    """Functions, classes and constants at the top of a module."""
    found: set[str] = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


@pytest.mark.parametrize("file", sorted(set(FILE.findall(PAGE)) - {"loop.py"}))
def test_a_named_file_exists(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_a_row_leads_to_names_of_its_files(row: list[str]) -> None:
    question, files, begin = row
    known = {name for file in FILE.findall(files) if file != "loop.py" for name in names_of(file)}
    wanted = re.findall(r"`(\w+)`", begin)
    assert question and wanted and set(wanted) <= known, (wanted, files)


def test_the_page_names_the_files_of_every_part_of_the_method() -> None:
    assert len(ROWS) > 35
    assert {file.partition("/")[0] for file in FILE.findall(PAGE)} >= {
        *("calibrate", "commands", "engines", "export", "families", "numerics", "quantize"),
        *("recipe", "runtime", "samples", "validate", "workspace"),
    }
