"""A tiny LlamaGen through the stages after its export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from arvg_trt.runtime.generator import Generator

from ...command_line import arvg
from .models import TinyLlamagen


def test_a_tiny_one_goes_through_every_stage(tiny_llamagen: TinyLlamagen, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    shutil.copytree(tiny_llamagen.workspace, root)
    named = ("--name", "w8a8")
    for stage in (
        ("calibrate", root, "--samples", 6, "--batch-size", 4),
        ("quantize", root, *named),
        ("build", root, *named),
        ("validate", root, *named, "--samples", 3, "--rounds", 0),
    ):
        done = arvg(*stage)
        assert done.code == 0, done
    report = json.loads((root / "validate" / "w8a8" / "report.json").read_text())
    logits = report["generation"]["qdq"]["logits"]
    assert 0 < logits["kl"] < 0.1 and logits["top1"] > 0.9
    wanted = Generator.open(root).generate(range(5), greedy=True).tokens
    for folder in (root / "quantize" / "w8a8", root / "engines" / "w8a8" / "onnxruntime"):
        tokens = tmp_path / "tokens.npz"
        done = arvg(
            "generate", folder, "--labels", "0-4", "--greedy", "--tokens", tokens, "--force"
        )
        assert done.code == 0, done
        assert np.mean(np.load(tokens)["tokens"] == wanted) > 0.5
    assert len(np.unique(wanted)) > 4
