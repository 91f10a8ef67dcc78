"""Every reduced case through all stages in process: where it ends, and how near it stays.

All options have their defaults.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..command_line import arvg, assert_refused
from .builders import CASES, Case

# Of eight or more: few rows of the linears' inputs, whose clips then cost decibels on the others.
SAMPLES = 4


@dataclass(frozen=True)
class Expected:
    """Hold a case's result: number of sites, reasons of others, least decibels of an engine.

    Or where it ends: the stage, its exit code, and words of its one line. `left` counts sites in
    high precision by a part of their reason.
    """

    least_db: float = 0.0
    sites: int = 0
    left: dict[str, int] = field(default_factory=dict)
    refused: tuple[str, int, tuple[str, ...]] | None = None
    said: str = ""


ENDS = "first or last product"
BODY = "in the body of a node"
EXPECTED: dict[str, Expected] = {
    "zero_means_dynamic": Expected(38, 3, {ENDS: 2}),
    "masked_logits": Expected(37, 2, said="NaN and infinity inside model reach no output"),
    "pruned_channels": Expected(34, 4, {ENDS: 2}),
    "grouped_convtranspose": Expected(34, 4, {ENDS: 2, "transposed convolution": 1}),
    "siamese_weights": Expected(32, 5, {ENDS: 3}),
    "subgraph_weights": Expected(34, 7, {f"{BODY} If": 4}),
    "initializers_are_inputs": Expected(38, 3, {ENDS: 2}),
    "empty_past": Expected(30, 7, {"attention": 2}),
    "conv1d_audio": Expected(32, 3, {ENDS: 2}),
    "gemm_bias_forms": Expected(33, 6),
    "gemm_alpha_beta": Expected(29, 3),
    "concat_of_one": Expected(30, 4, {ENDS: 2}),
    "half_model": Expected(20, 2),
    "already_qdq": Expected(
        refused=("export", 4, ("is already quantized (Q/DQ", "all zero points 0, int8"))
    ),
    "same_io_names": Expected(17, 4),
    "unused_input": Expected(35, 2),
    "constant_and_passed_outputs": Expected(38, 3, {ENDS: 2}),
    "nan_in_padded_rows": Expected(13, 3, said="NaN and infinity inside model reach no output"),
    "uint8_nhwc_input": Expected(30, 3, {ENDS: 2}),
    "weight_norm": Expected(37, 3, {ENDS: 2}),
    "batched_weight": Expected(31, 4),
    "names": Expected(35, 3, {ENDS: 2}),
    "opset24": Expected(39, 5, {"attention": 1}),
    "external_in_subfolder": Expected(23, 4),
    "control_flow_lstm": Expected(37, 3, {f"{BODY} If": 1}),
    "old_opsets": Expected(38, 3, {ENDS: 2}),
    "loop_body": Expected(35, 4, {f"{BODY} Loop": 1}),
    "small_rms_output": Expected(20, 2),
    "ai_onnx_domain": Expected(18, 2),
}


def run(folder: Path, graphs: list[str]) -> Any:
    """The report of all stages, or the first outcome that is not 0, with its stage."""
    ws = folder / "ws"
    feeds = ("--feeds", folder / "feeds.npz")
    named = [part for name in graphs for part in ("--graph", folder / name)]
    said = ""
    for stage, *options in (
        ("export", "onnx", ws, *named),
        ("calibrate", ws, *feeds, "--samples", SAMPLES),
        ("quantize", ws),
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
