"""The shipped minis, from their weights to pictures: what only trained weights can show."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from arvg_trt.families.variants import MODELS, find_model
from arvg_trt.runtime.generator import Generator
from arvg_trt.workspace.manifest import MANIFEST

from .minis import LABELS, SHOWN, Mini


@pytest.fixture(params=sorted((*SHOWN, "mar")))
def mini(request: pytest.FixtureRequest, mini_of: Callable[[str], Mini]) -> Mini:
    return mini_of(request.param)


def test_the_variant_tells_what_the_shipped_weights_are(mini: Mini) -> None:
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
    assert mini.losses(LABELS, mini.made.tokens).mean() < 0.7 * mini.chance
