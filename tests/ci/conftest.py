"""A repository with a cheap recipe whose stages have run, and tools to run a CI file in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..command_line import arvg
from ..families.custom.models import CLASSES, TOKENS, handmade_transformer
from ..shared import made_once
from .steps import Platform, make_tools

RECIPE_NAME = "it's mine.toml"
RECIPE = """\
schema = "arvg-trt/recipe/v1"
model = "onnx"
graphs = ["handmade.onnx"]
workspace = "out/my ws"
name = "int8"

[calibrate]
feeds = "calibration.npz"
samples = 8

[quantize]
activation_bits = 32  # which takes least time

[validate]
feeds = "validation.npz"
rounds = 0
gates = ["output_sqnr_db>=20"]
"""


@pytest.fixture
def repository(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the repository, in which the test runs; the recipe and folders have odd names."""

    def make(root: Path) -> None:
        handmade_transformer(root / "handmade.onnx")
        for name, count, seed in (("calibration", 8, 1), ("validation", 4, 2)):
            tokens = np.random.default_rng(seed).integers(0, CLASSES, (count, TOKENS))
            np.savez(root / f"{name}.npz", tokens=tokens)
        (root / RECIPE_NAME).write_text(RECIPE)
        before = Path.cwd()
        os.chdir(root)
        try:
            outcome = arvg("run", RECIPE_NAME)
        finally:
            os.chdir(before)
        assert outcome.code == 0, outcome

    copy, _ = made_once(tmp_path_factory, "ci_repository", make)
    monkeypatch.chdir(copy)
    yield copy


@pytest.fixture
def report(repository: Path) -> Path:
    return repository / "out" / "my ws" / "validate" / "int8" / "report.json"


@pytest.fixture
def platform(repository: Path, tmp_path: Path) -> Platform:
    return Platform(repository, make_tools(tmp_path / "tools"), {})
