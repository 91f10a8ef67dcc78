"""The shipped minis, from their weights to pictures: what only trained weights can show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.artifacts import MANIFEST
from arvg_trt.export.zoo import MODELS, find_model
from arvg_trt.runtime.generator import Generated, Generator
from arvg_trt.runtime.sessions.onnxruntime import fast_session

from .conftest import arvg

LABELS = np.arange(10)
SIDES = (1, 2, 3, 4, 5, 6, 8)
Tokens = NDArray[np.int32]


def var_shown(tokens: Tokens, export: Path) -> dict[str, NDArray[np.float32]]:
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
    return {"features": np.concatenate(parts, axis=1).astype(np.float32)}


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


def rar_shown(tokens: Tokens, _: Path) -> dict[str, NDArray[np.int64]]:
    return {"tokens": tokens[:, :-1].astype(np.int64)}


def par_shown(tokens: Tokens, _: Path) -> dict[str, NDArray[np.int64]]:
    return {"tokens": tokens[:, :-4].astype(np.int64)}


# What a family's full graph is shown of the tokens, beside the labels.
SHOWN: dict[str, Callable[[Tokens, Path], dict]] = {
    "var": var_shown,
    "rar": rar_shown,
    "par": par_shown,
}


@dataclass(frozen=True)
class Mini:
    """A family, its mini's workspace and a picture of each class that it made."""

    family: str
    workspace: Path
    made: Generated

    def losses(self, labels: NDArray[np.int64], tokens: Tokens) -> NDArray[np.float64]:
        """Teacher-forced cross-entropy in nats, [N], of the tokens [N, L] under labels [N]."""
        export = self.workspace / "export"
        full = fast_session(export / "full.onnx")
        shown = SHOWN[self.family](tokens, export)
        logits = full.run({"labels": labels, **shown})["logits"].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, tokens[..., None].astype(np.int64), axis=-1)[..., 0]
        entropy: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=-1)) - chosen
        return entropy.mean(axis=1)


@pytest.fixture(scope="module", params=sorted(SHOWN))
def mini(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mini:
    root = tmp_path_factory.mktemp(request.param) / "ws"
    outcome = arvg("export", f"{request.param}-mini", root)
    assert outcome.code == 0, outcome
    made = Generator.open(root).generate(LABELS, seed=1, batch_size=10)
    return Mini(request.param, root, made)


def test_the_zoo_entry_tells_what_the_shipped_weights_are(mini: Mini) -> None:
    results = json.loads((mini.workspace / "export" / MANIFEST).read_text())["results"]
    name = f"{mini.family}-mini"
    assert results["parameters_of"]["transformer"] == find_model(name).parameters
    assert sum(p.stat().st_size for p in (MODELS / name).iterdir()) < 10e6


def test_it_generates_a_picture_a_label_that_the_seed_decides(mini: Mini) -> None:
    made = mini.made
    assert made.images.shape == (10, 64, 64, 3) and made.images.dtype == np.uint8
    assert made.images.astype(np.float64).std(axis=(1, 2, 3)).min() > 10
    assert len({picture.tobytes() for picture in made.images}) == 10
    again = Generator.open(mini.workspace).generate(LABELS, seed=1, batch_size=3)
    assert np.array_equal(again.tokens, made.tokens)
    other = Generator.open(mini.workspace).generate(LABELS, seed=2, batch_size=10)
    assert (other.tokens != made.tokens).mean() > 0.5


def test_what_it_generates_for_a_label_is_likelier_under_it_than_under_others(mini: Mini) -> None:
    tokens = mini.made.tokens
    under = np.stack([mini.losses(np.full(10, label), tokens) for label in LABELS])
    assert (under.argmin(axis=0) == LABELS).mean() >= 0.8  # a chance of 0.1 a picture


def test_it_foresees_the_tokens_of_what_it_made_far_better_than_chance(mini: Mini) -> None:
    assert mini.losses(LABELS, mini.made.tokens).mean() < 0.7 * math.log(512)
