"""`network`, and what `validate` makes of the networks, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ..command_line import Finished, arvg, assert_refused
from ..validate.networks_of_tests import colour_network, difference_network, save_backbone


def test_a_network_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save_backbone(tmp_path / "alex.pth", "alex")
    outcome = arvg("network", "lpips-alex", tmp_path / "alex.pth", "-o", tmp_path / "net.onnx")
    assert outcome.code == 0 and "LPIPS 0.1, AlexNet" in outcome.out, outcome
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "cut.pth")
    outcome = arvg("network", "lpips-alex", tmp_path / "cut.pth", "-o", tmp_path / "cut.onnx")
    assert_refused(outcome, 4, "has no features.0.bias")
    (tmp_path / "text.pth").write_text("no weights")
    outcome = arvg("network", "dists", tmp_path / "text.pth", "-o", tmp_path / "cut.onnx")
    assert_refused(outcome, 4, "text.pth")
    assert not (tmp_path / "cut.onnx").exists()


@pytest.fixture
def workspace(finished: Finished, tmp_path: Path) -> Path:
    """A tokenizer quantized as int8."""
    shutil.copytree(finished.workspace, tmp_path / "ws")
    return tmp_path / "ws"


def test_validate_measures_a_tokenizer_with_networks_and_gates_them(
    workspace: Path, tmp_path: Path
) -> None:
    networks = (
        *("--features", colour_network(tmp_path / "colour.onnx")),
        *("--lpips", difference_network(tmp_path / "difference.onnx")),
    )
    gates = [f"--gate={gate}" for gate in ("rfid_rise<=1e9", "lpips<=1", "codebook_perplexity>=1")]
    args = ("--name", "int8", "--images", "skimage:astronaut,chelsea,retina", "--size", 64)
    outcome = arvg("validate", workspace, *args, "--rounds", 0, *networks, *gates)
    assert outcome.code == 0, outcome
    folder = workspace / "validate" / "int8"
    report = json.loads((folder / "report.json").read_text())
    quality = report["accuracy"]["qdq"]["quality"]
    assert quality["rfid"]["images"] == 3 and quality["rfid"]["width"] == 3
    assert len(quality["pairs"]["lpips"]["original"]["each"]) == 3
    page = (folder / "report.md").read_text()
    assert "rFID" in page and "biased upward" in page and "LPIPS to the original" in page
    outcome = arvg("validate", workspace, *args, "--rounds", 0, "--gate", "dists<=1")
    assert outcome.code == 8 and "dists was not measured" in outcome.err, outcome
    outcome = arvg("validate", workspace, *args, "--lpips", tmp_path / "absent.onnx")
    assert_refused(outcome, 5, "no such network")
