"""`encode` and `decode` with the tokenizers of generators' workspaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arvg_trt.runtime.images import from_model, load_image, to_model

from ..command_line import arvg, assert_refused
from ..families.rar.models import TinyRar


def picture(path: Path, height: int, width: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("inside", ["", "export"])
def test_rars_tokenizer_takes_images_of_any_size(
    tiny_rar: TinyRar, tmp_path: Path, inside: str
) -> None:
    folder, tokens = tiny_rar.workspace / inside, tmp_path / "tokens.npz"
    pixels = picture(tmp_path / "a.png", 12, 20)
    picture(tmp_path / "odd.png", 7, 5)
    outcome = arvg("encode", folder, tmp_path / "a.png", tmp_path / "odd.png", "-o", tokens)
    assert outcome.code == 0, outcome
    model = tiny_rar.tokenizer
    codes = model.codes(model.encode(torch.from_numpy(to_model(pixels))))
    with np.load(tokens) as found:
        assert np.array_equal(found["tokens_0"], codes.numpy())
        assert found["tokens_1"].shape == (1, 4, 3)
    assert arvg("decode", folder, tokens, "-o", tmp_path / "out").code == 0
    wanted = from_model(model.decode(codes).numpy())
    assert np.abs(load_image(tmp_path / "out" / "a.png").astype(int) - wanted).max() <= 1
    assert load_image(tmp_path / "out" / "odd.png").shape == (7, 5, 3)


def test_tokens_that_are_there_are_replaced_by_force_alone(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.npz"
    tokens.write_bytes(b"work of days")
    picture(tmp_path / "a.png", 8, 8)
    encode = ("encode", tiny_rar.workspace, tmp_path / "a.png", "-o", tokens)
    assert_refused(arvg(*encode), 9, "tokens.npz: is there already", "--force")
    assert tokens.read_bytes() == b"work of days"
    assert arvg(*encode, "--force").code == 0
    assert tokens.read_bytes() != b"work of days"


def test_a_workspace_without_graphs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ws" / "export").mkdir(parents=True)
    picture(tmp_path / "a.png", 8, 8)
    outcome = arvg("encode", tmp_path / "ws", tmp_path / "a.png", "-o", tmp_path / "t.npz")
    assert_refused(outcome, 7, "ws/export: encoder.onnx is missing")
