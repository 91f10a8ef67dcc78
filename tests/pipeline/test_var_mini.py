"""The shipped var-mini, from its weights to pictures: what only trained weights can show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arvg_trt.artifacts import MANIFEST
from arvg_trt.export.zoo import MODELS, find_model
from arvg_trt.runtime.generator import Generated, Generator
from arvg_trt.runtime.image_sources import open_source
from arvg_trt.runtime.images import center_crop, load_image
from arvg_trt.runtime.sessions.onnxruntime import fast_session
from arvg_trt.validate.metrics import psnr

from .conftest import arvg, assert_refused

LABELS = np.arange(10)
SIDES = (1, 2, 3, 4, 5, 6, 8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("var_mini") / "ws"
    outcome = arvg("export", "var-mini", root)
    assert outcome.code == 0, outcome
    return root


@pytest.fixture(scope="module")
def made(workspace: Path) -> Generated:
    return Generator.open(workspace).generate(LABELS, seed=1, batch_size=10)


def losses(
    workspace: Path, labels: NDArray[np.int64], tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Teacher-forced cross-entropy in nats, [N], of the tokens [N, L] under labels [N]."""
    export = workspace / "export"
    features = features_of(tokens, export)
    full = fast_session(export / "full.onnx")
    logits = full.run({"labels": labels, "features": features})["logits"].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[..., None].astype(np.int64), axis=-1)[..., 0]
    entropy: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=-1)) - chosen
    return entropy.mean(axis=1)


def features_of(tokens: NDArray[np.int32], export: Path) -> NDArray[np.float32]:
    """The full graph's input: after each scale but the last, the sum so far, shrunk by means."""
    count, size = len(tokens), SIDES[-1]
    f_hat = np.zeros((count, 16, size, size), np.float32)
    parts, start = [], 0
    for scale, side in enumerate(SIDES[:-1]):
        update = fast_session(export / f"update.{scale}.onnx")
        ids = tokens[:, start : start + side * side].astype(np.int64)
        f_hat = update.run({"tokens": ids, "f_hat": f_hat})["f_hat_next"]
        parts.append(area(f_hat, SIDES[scale + 1]))
        start += side * side
    return np.concatenate(parts, axis=1).astype(np.float32)


def area(image: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Means of adaptive windows, [N, C, H, H] -> [N, side * side, C]."""
    size = image.shape[-1]
    windows = [(k * size // side, math.ceil((k + 1) * size / side)) for k in range(side)]
    cells = [
        image[:, :, a:b, c:d].astype(np.float64).mean(axis=(2, 3))
        for a, b in windows
        for c, d in windows
    ]
    return np.stack(cells, axis=1)


def test_the_zoo_entry_tells_what_the_shipped_weights_are(workspace: Path) -> None:
    results = json.loads((workspace / "export" / MANIFEST).read_text())["results"]
    assert results["parameters_of"]["transformer"] == find_model("var-mini").parameters
    assert sum(p.stat().st_size for p in (MODELS / "var-mini").iterdir()) < 10e6


def test_it_generates_a_picture_a_label_that_the_seed_decides(
    workspace: Path, made: Generated
) -> None:
    assert made.images.shape == (10, 64, 64, 3) and made.images.dtype == np.uint8
    assert made.images.astype(np.float64).std(axis=(1, 2, 3)).min() > 10
    assert len({picture.tobytes() for picture in made.images}) == 10
    again = Generator.open(workspace).generate(LABELS, seed=1, batch_size=3)
    assert np.array_equal(again.tokens, made.tokens)
    other = Generator.open(workspace).generate(LABELS, seed=2, batch_size=10)
    assert (other.tokens != made.tokens).mean() > 0.5


def test_what_it_generates_for_a_label_is_likelier_under_it_than_under_others(
    workspace: Path, made: Generated
) -> None:
    under = np.stack([losses(workspace, np.full(10, label), made.tokens) for label in LABELS])
    assert (under.argmin(axis=0) == LABELS).mean() >= 0.8  # a chance of 0.1 a picture


def test_it_foresees_the_tokens_of_what_it_made_far_better_than_chance(
    workspace: Path, made: Generated
) -> None:
    assert losses(workspace, LABELS, made.tokens).mean() < 0.7 * math.log(512)


def photograph(path: Path, *size: int) -> Path:
    crop = center_crop(open_source("skimage:astronaut").load(0), 256)
    Image.fromarray(crop).resize(size).save(path)
    return path


def test_pictures_become_tokens_and_pictures_again(workspace: Path, tmp_path: Path) -> None:
    image, tokens = photograph(tmp_path / "a.png", 64, 64), tmp_path / "tokens.npz"
    assert arvg("encode", workspace, image, "-o", tokens).code == 0
    with np.load(tokens) as found:
        assert found["tokens_0"].shape == (1, sum(side * side for side in SIDES))
        assert len(np.unique(found["tokens_0"])) > 40
    assert arvg("decode", workspace, tokens, "-o", tmp_path / "out").code == 0
    original, back = load_image(image), load_image(tmp_path / "out" / "0.png")
    # Nine bits for each of 155 tokens say far more than the mean colour.
    flat = np.full_like(original, original.mean(axis=(0, 1)).round().astype(np.uint8))
    assert psnr(back, original) > psnr(flat, original) + 6


def test_generated_tokens_decode_to_the_generated_picture(
    workspace: Path, tmp_path: Path, made: Generated
) -> None:
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
