"""A photograph through the shipped gsq-mini and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from arvg_trt.families.variants import find_model
from arvg_trt.runtime.images import load_image
from arvg_trt.validate.metrics.image import psnr
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import arvg
from .minis import photograph


def test_it_keeps_a_photograph_in_four_codes_a_place(tmp_path: Path) -> None:
    workspace, tokens = tmp_path / "ws", tmp_path / "tokens.npz"
    outcome = arvg("export", "gsq-mini", workspace)
    assert outcome.code == 0, outcome
    results = json.loads((workspace / "export" / MANIFEST).read_text())["results"]
    assert results["parameters"] == find_model("gsq-mini").parameters
    image = photograph(tmp_path / "a.png", 64, 64)
    assert arvg("encode", workspace, image, "-o", tokens).code == 0
    with np.load(tokens) as found:
        assert found["tokens_0"].shape == (1, 8, 8, 4)
        assert len(np.unique(found["tokens_0"])) > 60
    assert arvg("decode", workspace, tokens, "-o", tmp_path / "out").code == 0
    original, back = load_image(image), load_image(tmp_path / "out" / "a.png")
    flat = np.full_like(original, original.mean(axis=(0, 1)).round().astype(np.uint8))
    assert psnr(back, original) > psnr(flat, original) + 4
