"""Workspaces that the commands made, once for all tests."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from arvg_trt.runtime.generator import Generated, Generator
from arvg_trt.workspace.workspace import WORKSPACE_FILE

from ..command_line import (
    MAR_CHOICE,
    RECIPE,
    Finished,
    Outcome,
    arvg,
    leftovers,
    send_in_the_middle,
    start,
    wait_for,
)
from ..families.mar.models import TinyMar
from ..minis.minis import LABELS, Mini, Quantized
from ..one_process import exporting_here
from ..shared import AFTER_EXPORT, made_once


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A recipe's workspace, made by one machine's first worker to ask; a recipe of each copy."""

    def make(root: Path) -> tuple[Path, Outcome, bool, Outcome]:
        save_photographs(root)
        recipe = write_recipe(root)
        folder = root / "workspace" / "export"
        killed = send_in_the_middle(signal.SIGKILL, folder, ("run", recipe))
        left = bool(leftovers(root / "workspace"))
        outcome = wait_for(start("run", recipe))
        assert outcome.code == 0, outcome.err
        return root, killed, left, outcome

    root, (first, killed, left, outcome) = made_once(tmp_path_factory, "finished", make)
    here = replace(outcome, out=outcome.out.replace(str(first), str(root)))
    return Finished(
        root,
        workspace=root / "workspace",
        recipe=write_recipe(root),
        calibration=root / "calibration",
        validation=root / "validation",
        killed=killed,
        left_by_kill=left,
        outcome=here,
    )


def save_photographs(root: Path) -> None:
    photos = Path(str(resources.files("skimage.data")))
    for folder, name, size in (
        ("calibration", "coffee.png", (96, 80)),
        ("calibration", "rocket.jpg", (80, 96)),
        ("validation", "astronaut.png", (96, 96)),
    ):
        (root / folder).mkdir(exist_ok=True)
        small = Image.open(photos / name).resize(size)
        small.save(root / folder / Path(name).with_suffix(".png"))


def write_recipe(root: Path) -> Path:
    """Write the recipe of a folder, which names its places."""
    recipe = root / "tiny.toml"
    places = {name: root / name for name in ("workspace", "calibration", "validation")}
    recipe.write_text(RECIPE.format(**places))
    return recipe


@pytest.fixture
def workspace(finished: Finished, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "ws"
    shutil.copytree(finished.workspace, copy)
    return copy


@pytest.fixture
def exported(finished: Finished, tmp_path: Path) -> Path:
    """A copy in which only the export was done."""
    copy = tmp_path / "ws"
    shutil.copytree(finished.workspace / "export", copy / "export")
    shutil.copy(finished.workspace / WORKSPACE_FILE, copy)
    return copy


@pytest.fixture(scope="session")
def mini_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Mini]:
    """The shipped mini of a family, exported once; tests that change its workspace take a copy.

    In this process, which is faster; `tests/test_api.py` exports by the processes that users have.
    """

    @cache
    def make(family: str) -> Mini:
        def export(root: Path) -> Generated:
            with exporting_here():
                outcome = arvg("export", f"{family}-mini", root / "ws")
            assert outcome.code == 0, outcome
            return Generator.open(root / "ws").generate(LABELS, seed=1, batch_size=10)

        root, made = made_once(tmp_path_factory, f"{family}_mini", export, unused=AFTER_EXPORT)
        return Mini(family, root / "ws", made)

    return make


@pytest.fixture(scope="session")
def quantized_of(
    mini_of: Callable[[str], Mini], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Quantized]:
    """The mini of a family with its W8A8 Q/DQ graphs, made once."""

    @cache
    def make(family: str) -> Quantized:
        mini = mini_of(family)

        def quantize(root: Path) -> None:
            shutil.copytree(mini.workspace, root / "ws")
            outcome = arvg("calibrate", root / "ws", "--samples", 20, "--batch-size", 8)
            assert outcome.code == 0, outcome
            outcome = arvg("quantize", root / "ws", "--name", "w8a8", "--rounding", "gptq")
            assert outcome.code == 0, outcome

        root, _ = made_once(tmp_path_factory, f"{family}_quantized", quantize)
        return Quantized(mini, root / "ws")

    return make


@pytest.fixture(scope="session")
def quantized_mar(tiny_mar: TinyMar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MAR's workspace: calibrated on six pictures, made four and two at a time; quantized
    as w8a8 and w6a6.
    """

    def make(root: Path) -> None:
        copy = root / "ws"
        shutil.copytree(tiny_mar.workspace, copy)
        outcome = arvg("calibrate", copy, "--samples", 6, *MAR_CHOICE)
        assert outcome.code == 0, outcome
        for bits in (8, 6):
            options = ("--weight-bits", bits, "--activation-bits", bits)
            outcome = arvg("quantize", copy, "--name", f"w{bits}a{bits}", *options)
            assert outcome.code == 0, outcome

    return made_once(tmp_path_factory, "quantized_mar", make)[0] / "ws"
