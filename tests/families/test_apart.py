"""Families of generators know nothing of each other: what two of them need is shared."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import arvg_trt
from arvg_trt.runtime.families import built_in_families

ROOT = Path(str(arvg_trt.__file__)).resolve().parent / "families"
GENERATORS = {family.name for family in built_in_families() if family.generates}


def siblings(path: Path) -> set[str]:
    """The packages beside a module's own that it imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_generator_imports_no_other(name: str) -> None:
    modules = list((ROOT / name).glob("*.py"))
    assert modules and any("shared" in siblings(path) for path in modules)
    assert not {other for path in modules for other in siblings(path) & GENERATORS}


def test_what_is_shared_imports_no_generator() -> None:
    paths = list((ROOT / "shared").rglob("*.py"))
    text = "\n".join(path.read_text() for path in paths)
    assert len(paths) > 15
    assert not [name for name in GENERATORS if f"from ..{name}." in text or f"..{name}." in text]
