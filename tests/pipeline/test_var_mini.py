"""The shipped var-mini, from its weights to pictures: what only trained weights can show."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.artifacts import MANIFEST
from arvg_trt.export.zoo import MODELS, find_model
from arvg_trt.runtime.feeds import load_sample, sample_files
from arvg_trt.runtime.generator import Generated, Generator
from arvg_trt.runtime.sessions.onnxruntime import fast_session, reference_session

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


# Quantized


@pytest.fixture(scope="module")
def quantized(workspace: Path) -> Path:
    outcome = arvg("calibrate", workspace, "--samples", 20, "--batch-size", 8)
    assert outcome.code == 0, outcome
    outcome = arvg("quantize", workspace, "--recipe", "var-w8a8")
    assert outcome.code == 0, outcome
    return workspace / "quantize" / "w8a8"


def test_samples_are_its_own_pictures_under_guidance(workspace: Path, quantized: Path) -> None:
    files = sample_files(workspace / "calibrate" / "samples")
    labels = [int(load_sample(path)["labels"][0]) for path in files]
    assert labels == [x for k in range(20) for x in (k % 10, 10)]
    first, null = (load_sample(path)["features"] for path in files[:2])
    assert np.array_equal(first, null)
    tokens = Generator.open(workspace).generate(LABELS, seed=0, batch_size=10).tokens[:1]
    np.testing.assert_allclose(first, features_of(tokens, workspace / "export"), atol=1e-5)


def test_eight_bits_agree_with_float_on_what_comes_next(
    workspace: Path, quantized: Path, made: Generated
) -> None:
    feeds = {"labels": LABELS, "features": features_of(made.tokens, workspace / "export")}
    wanted, found = (
        reference_session(folder / "full.onnx").run(feeds)["logits"].argmax(axis=-1)
        for folder in (workspace / "export", quantized)
    )
    assert (wanted == found).mean() > 0.95


def test_its_quantized_graphs_generate_from_their_folder(
    workspace: Path, quantized: Path, made: Generated, tmp_path: Path
) -> None:
    again = Generator.open(quantized).generate(LABELS, seed=1, batch_size=10)
    assert again.images.shape == made.images.shape
    assert losses(workspace, LABELS, again.tokens).mean() < 0.7 * math.log(512)
    outcome = arvg("generate", quantized, "--labels", "3", "-o", tmp_path / "out")
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("*_3.png"))) == 1


def test_its_weights_take_a_quarter_of_the_bytes(quantized: Path) -> None:
    results = json.loads((quantized / MANIFEST).read_text())["results"]
    assert results["packed_bytes"] < 0.3 * results["fp32_bytes"]
    assert results["quantized"] == 32


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (("its own", "--images"), ("calibrate", "--images", "skimage")),
        (("generates itself", "--synthetic"), ("calibrate", "--synthetic")),
        (("label out of range: 10",), ("calibrate", "--labels", "3,10")),
        (("is neither a class",), ("calibrate", "--labels", "cat")),
        (("no engine is built",), ("build", "--name", "w8a8")),
        (("is no image tokenizer",), ("validate", "--name", "w8a8", "--images", "skimage")),
        (("matches no site",), ("quantize", "--exclude", "blocks.9.*")),
        (("not fp8", "fp8"), ("quantize", "--quantize-method", "fp8")),
    ],
)
def test_what_a_generator_cannot_have_is_refused(
    workspace: Path, quantized: Path, words: tuple[str, ...], args: tuple[str, ...]
) -> None:
    outcome = arvg(args[0], workspace, *args[1:])
    assert outcome.code != 0 and outcome.err.count("\n") == 1
    assert any(word in outcome.err for word in words), outcome.err


def test_statistics_of_another_export_are_refused(
    workspace: Path, quantized: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    manifest = copy / "calibrate" / MANIFEST
    told = json.loads(manifest.read_text())
    told["inputs"]["full.onnx"] = "0" * 64
    manifest.write_text(json.dumps(told))
    outcome = arvg("quantize", copy, "--name", "other")
    assert_refused(outcome, 5, "statistics are of another export", "full.onnx")
