"""The demo: its commands exist, and the model that it takes for one's own is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from arvg_trt.cli import cli
from arvg_trt.demo.own_model import SIZE, main
from arvg_trt.recipe.file import load_recipe
from arvg_trt.runtime.sessions.open import fast_session

from ..command_line import arvg
from ..test_rooms import ROOT

OWN = "out/own/files"


def lines() -> list[str]:
    """Commands of `make demo`, without the folder of the programs."""
    text = (ROOT / "Makefile").read_text("utf-8")
    found = re.search(r"^demo: setup\n((?:\t.+\n)+)", text, re.MULTILINE)
    assert found
    return [line.strip().replace("$(BIN)/", "") for line in found[1].splitlines()]


def test_the_demo_names_commands_and_presets_that_exist() -> None:
    named = re.findall(r"arvg-trt ([a-z-]+)", "\n".join(lines()))
    assert len(named) > 8 and set(named) <= set(cli.commands)
    presets = re.findall(r"arvg-trt run (\S+)", "\n".join(lines()))
    assert [load_recipe(preset).model for preset in presets] == ["cosmos-mini-di8x8", "var-mini"]


def test_the_index_of_the_demo_has_every_workspace_and_the_bundle() -> None:
    made = {load_recipe(p).workspace for p in re.findall(r"run (\S+)", "\n".join(lines()))}
    validated = re.findall(r"arvg-trt validate (\S+)", "\n".join(lines()))
    bundles = re.findall(r"arvg-trt bundle .* -o (\S+)", "\n".join(lines()))
    *named, _, page = lines()[-1].removeprefix("arvg-trt index ").split()
    assert sorted(named) == sorted([*made, *validated, *bundles])
    assert page == "out/demo/index.html"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    outcome = CliRunner().invoke(main, [str(folder)])
    assert outcome.exit_code == 0, outcome
    return folder


def test_the_own_model_is_plain_onnx_with_photographs_to_feed_it(own: Path) -> None:
    for name in ("encoder", "decoder"):
        graph = onnx.load(own / f"{name}.onnx").graph
        assert not [node for node in graph.node if "Quantize" in node.op_type]
    feeds = {name: np.load(own / f"{name}.npz")["image"] for name in ("calibration", "held_out")}
    for images in feeds.values():
        assert images.shape == (16, 3, SIZE, SIZE) and images.dtype == np.float32
        assert -1 <= images.min() < 0 < images.max() <= 1
    every = np.concatenate(list(feeds.values()))
    assert len({image.tobytes() for image in every}) == 32
    made = np.stack([decoded(own, image) for image in feeds["held_out"][:4]])
    variance = np.square(feeds["held_out"][:4] - feeds["held_out"][:4].mean()).mean()
    assert np.square(made - feeds["held_out"][:4]).mean() < 0.5 * variance  # it does reconstruct


def decoded(own: Path, image: np.ndarray) -> np.ndarray:
    found = fast_session(own / "encoder.onnx").run({"image": image[None]})
    made = fast_session(own / "decoder.onnx").run({"latent": found["latent"]})
    return np.asarray(made["decoded"][0])


def test_the_own_model_is_taken_as_any_other(own: Path, tmp_path: Path) -> None:
    graphs = [word for name in ("encoder", "decoder") for word in ("--graph", own / f"{name}.onnx")]
    outcome = arvg("export", "onnx", tmp_path / "ws", *graphs)
    assert outcome.code == 0, outcome
    outcome = arvg("calibrate", tmp_path / "ws", "--feeds", own / "calibration.npz", "--samples", 2)
    assert outcome.code == 0, outcome
