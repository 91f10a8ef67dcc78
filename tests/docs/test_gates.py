"""The page on reports names every figure that a gate can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import arvg_trt
from arvg_trt.validate.metric_names import metric_names
from arvg_trt.workspace.facts import ModelKind

PAGE = Path(str(arvg_trt.__file__)).resolve().parent / "docs" / "validation.md"


def named(text: str) -> set[str]:
    """The names in code of a page's tables; `_min`, `_vs_fp32` and `_rise` are added to names."""
    found = set()
    for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", row)
        plain = [name for name in names if not name.startswith("_")]
        found |= {*plain, *(f"{name}_min" for name in plain if "`_min`" in row)}
    return found | {f"{name}_vs_fp32" for name in found}


@pytest.mark.parametrize("kind", get_args(ModelKind))
def test_every_metric_of_a_kind_of_model_is_in_the_tables(kind: ModelKind) -> None:
    wanted = {name for name in metric_names(kind) if "." not in name}
    assert len(wanted) > 5
    assert not wanted - named(PAGE.read_text(encoding="utf-8"))
