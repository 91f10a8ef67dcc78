"""Figures of the benchmarks' tables, at the language level of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import arvg_trt
from arvg_trt.benchmarks.common import fixed

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
# A sign option of a format specification that Python 3.10 refuses, when the line is run.
LATER_FORMAT = re.compile(r"(?:.?[<>=^])?[-+ ]?z")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.004, "0.00"),
        (-0.0, "0.00"),
        (0.004, "0.00"),
        (-0.006, "-0.01"),
        (np.float32(-0.001), "0.00"),
        (np.float64(12.345678), "12.35"),
        (float("nan"), "nan"),
        (-1e9, "-1000000000.00"),
    ],
)
def test_what_rounds_to_zero_has_no_sign(value: float, text: str) -> None:
    assert fixed(value, 2) == text


def specifications(path: Path) -> set[str]:
    """Every format specification of a module's f-strings, without what is computed in it."""
    return {
        "".join(str(part.value) for part in node.format_spec.values if hasattr(part, "value"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr)
    }


def test_no_figure_is_written_in_a_format_of_a_later_python() -> None:
    assert LATER_FORMAT.match("z.2f") and LATER_FORMAT.match(" >+z,")
    every = [path for path in ROOT.rglob("*.py") if not {"out", "build"} & {*path.parts}]
    specified = {path: specifications(path) for path in every if ".venv" not in path.parts}
    assert sum(map(len, specified.values())) > 100
    assert [path for path, found in specified.items() if any(map(LATER_FORMAT.match, found))] == []
