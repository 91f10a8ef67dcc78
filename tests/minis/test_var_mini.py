"""Pictures through the tokenizer of the shipped var-mini, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.runtime.images import load_image
from arvg_trt.validate.metrics.image import psnr

from ..command_line import arvg, assert_refused
from .minis import SIDES, Mini, photograph


@pytest.fixture
def workspace(mini_of: Callable[[str], Mini]) -> Path:
    return mini_of("var").workspace


def test_pictures_become_tokens_and_pictures_again(workspace: Path, tmp_path: Path) -> None:
    image, tokens = photograph(tmp_path / "a.png", 64, 64), tmp_path / "tokens.npz"
    assert arvg("encode", workspace, image, "-o", tokens).code == 0
    with np.load(tokens) as found:
        assert found["tokens_0"].shape == (1, sum(side * side for side in SIDES))
        assert len(np.unique(found["tokens_0"])) > 40
    assert arvg("decode", workspace, tokens, "-o", tmp_path / "out").code == 0
    original, back = load_image(image), load_image(tmp_path / "out" / "a.png")
    # Nine bits for each of 155 tokens say far more than the mean colour.
    flat = np.full_like(original, original.mean(axis=(0, 1)).round().astype(np.uint8))
    assert psnr(back, original) > psnr(flat, original) + 6


def test_generated_tokens_decode_to_the_generated_picture(
    mini_of: Callable[[str], Mini], workspace: Path, tmp_path: Path
) -> None:
    made = mini_of("var").made
    np.savez(tmp_path / "tokens.npz", tokens_0=made.tokens[:1])
    assert arvg("decode", workspace, tmp_path / "tokens.npz", "-o", tmp_path / "out").code == 0
    found = load_image(tmp_path / "out" / "0.png").astype(int)
    assert np.abs(found - made.images[0]).max() <= 1


@pytest.mark.parametrize("size", [(64, 32), (128, 128), (63, 64)])
def test_other_sizes_are_refused_by_file(
    workspace: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = photograph(tmp_path / "a.png", *size)
    outcome = arvg("encode", workspace, image, "-o", tmp_path / "tokens.npz")
    assert_refused(outcome, 7, f"a.png: has {size[0]}x{size[1]} pixels", "takes 64x64 alone")
    assert not (tmp_path / "tokens.npz").exists()


def test_tokens_of_another_length_are_refused(workspace: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", tokens_0=np.zeros((1, 8, 8), np.int32))
    outcome = arvg("decode", workspace, tmp_path / "tokens.npz", "-o", tmp_path / "out")
    assert_refused(outcome, 7, "tokens of shape (1, 8, 8)", "give integers [N, 155]")
