"""Every reduced case through all stages in process: where it ends, and how near it stays.

Nothing is smoothed here: how smoothing is chosen has tests of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..pipeline.conftest import arvg, assert_refused
from .builders import CASES, Case

SAMPLES = 4


@dataclass(frozen=True)
class Expected:
    """What a case comes to: how many sites, why some are left, the least decibels of an engine.

    Or where it ends: the stage, its exit code, and words of its one line. `left` counts sites in
    high precision by a part of their reason.
    """

    least_db: float = 0.0
    sites: int = 0
    left: dict[str, int] = field(default_factory=dict)
    refused: tuple[str, int, tuple[str, ...]] | None = None
    said: str = ""


ENDS = "first or last product"
EXPECTED: dict[str, Expected] = {}


def run(folder: Path, graphs: list[str]) -> Any:
    """The report of all stages, or the first outcome that is not 0, with its stage."""
    ws = folder / "ws"
    feeds = ("--feeds", folder / "feeds.npz")
    named = [part for name in graphs for part in ("--graph", folder / name)]
    said = ""
    for stage, *options in (
        ("export", "onnx", ws, *named),
        ("calibrate", ws, *feeds, "--samples", SAMPLES),
        ("quantize", ws, "--smoothing", 0),
        ("build", ws),
        ("validate", ws, *feeds, "--rounds", 0),
    ):
        outcome = arvg(stage, *options)
        said += outcome.out
        if outcome.code:
            return stage, outcome
    report = json.loads((ws / "validate/int8/report.json").read_text())
    return report, said


@pytest.mark.parametrize("name", CASES)
def test_case_ends_as_expected(tmp_path: Path, name: str) -> None:
    expected = EXPECTED[name]
    CASES[name](Case(tmp_path))
    order = tmp_path / "order.txt"
    files = sorted(path.name for path in tmp_path.glob("*.onnx"))
    graphs = order.read_text().split() if order.is_file() else files
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.onnx")}
    found, rest = run(tmp_path, graphs)
    assert all(path.read_bytes() == data for path, data in before.items())
    if expected.refused is not None:
        stage, code, words = expected.refused
        assert found == stage
        assert_refused(rest, code, *words)
        return
    assert isinstance(found, dict), rest
    sites = json.loads((tmp_path / "ws/export/sites.json").read_text())["sites"]
    reasons = [str(site.get("excluded") or "") for site in sites]
    assert len(sites) == expected.sites
    assert sum(map(bool, reasons)) == sum(expected.left.values())
    for words, count in expected.left.items():
        assert sum(words in reason for reason in reasons) == count
    assert expected.said in rest
    for candidate in ("qdq", "engine"):
        for output in found["outputs"][candidate]:
            if output["max_error"]:
                assert output["sqnr_db"] >= expected.least_db, output
            elif output["equal"] is not None:
                assert output["equal"] >= 0.9, output
