"""The shipped recipes of generators on the shipped minis: what each format leaves of the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import arvg
from .minis import LABELS, SHOWN, Mini, run_decibels

SAMPLES = 4

Calibrated = Callable[[str], tuple[Mini, Path]]


@pytest.fixture(scope="module")
def calibrated(
    mini_of: Callable[[str], Mini], tmp_path_factory: pytest.TempPathFactory
) -> Calibrated:
    """A mini with a few samples of its own, by family."""
    made: dict[str, tuple[Mini, Path]] = {}

    def make(family: str) -> tuple[Mini, Path]:
        if family not in made:
            mini = mini_of(family)
            workspace = tmp_path_factory.mktemp("recipes") / "ws"
            shutil.copytree(mini.workspace, workspace)
            given = ("--recipe", f"{family}-w8a8", "--samples", SAMPLES)
            outcome = arvg("calibrate", workspace, *given)
            assert outcome.code == 0, outcome
            made[family] = mini, workspace
        return made[family]

    return make


def agreement(mini: Mini, folder: Path) -> float:
    """Share of a picture's positions whose likeliest token is FP32's, all before given."""
    shown = SHOWN[mini.family](mini.made.tokens, mini.workspace / "export")
    wanted, found = (
        reference_session(where / "full.onnx")
        .run({"labels": LABELS, **shown})["logits"]
        .argmax(axis=-1)
        for where in (mini.workspace / "export", folder)
    )
    return float((wanted == found).mean())


@pytest.mark.parametrize(
    ("recipe", "weight", "activation", "least", "bytes_share"),
    [
        ("var-w8a8", "INT8 per-channel", "INT8 per-position", 0.93, 0.33),
        ("var-w6a6", "INT6 per-channel", "INT6 per-position", 0.75, 0.28),
        ("var-w6a6-paper", "INT6 per-channel", "INT6 per-position", 0.65, 0.27),
        ("var-w8a16", "INT8 per-channel", "float", 0.95, 0.33),
        ("var-w4a16", "INT4 per-block of 32", "float", 0.7, 0.22),
        ("var-fp8", "FP8 per-channel", "FP8 per-position", 0.85, 0.33),
        ("rar-w4a16", "INT4 per-block of 32", "float", 0.7, 0.25),
        ("par-fp8", "FP8 per-channel", "FP8 per-position", 0.85, 0.33),
        ("llamagen-fp8", "FP8 per-channel", "FP8 per-position", 0.85, 0.33),
        ("llamagen-w4a16", "INT4 per-block of 32", "float", 0.7, 0.25),
    ],
)
def test_a_recipe_quantizes_its_mini(
    calibrated: Calibrated,
    recipe: str,
    weight: str,
    activation: str,
    least: float,
    bytes_share: float,
) -> None:
    family, _, name = recipe.partition("-")  # of the quantization, as the recipe calls it
    mini, workspace = calibrated(family)
    outcome = arvg("quantize", workspace, "--recipe", recipe)
    assert outcome.code == 0, outcome
    folder = workspace / "quantize" / name
    results = json.loads((folder / MANIFEST).read_text())["results"]
    every = [s for s in results["sites"] if s["weight_sqnr_db"] is not None]
    quantized = [s for s in every if s["graph"] != "decoder"]
    assert len(every) == results["quantized"] and len(quantized) >= 31
    # The image decoder is quantized as a tokenizer, where the recipe says so.
    assert (len(every) > len(quantized)) == (recipe in ("var-w8a8", "rar-w8a8"))
    # What makes the modulation has 8-bit weights and float inputs in the presets of all linears.
    others = [s for s in quantized if s["activation"] != "float" or activation == "float"]
    assert {site["weight"] for site in others} == {weight}
    assert all("ada_lin" in s["name"] for s in quantized if s not in others)
    # Per tensor only where an input has no positions, as a condition's; shifts are of no concern.
    inside = {s["activation"].split(",")[0] for s in others if ".0." in s["name"]}
    assert activation in inside and inside <= {activation, activation.replace("position", "tensor")}
    assert results["packed_bytes"] < bytes_share * results["fp32_bytes"]
    assert results["fp32_tensors"] == []
    assert agreement(mini, folder) > least


def test_attention_of_a_mini_is_quantized_on_request(calibrated: Calibrated) -> None:
    _, workspace = calibrated("par")
    asked = ("--recipe", "par-w8a16", "--attention", "fp8", "--name", "attention")
    outcome = arvg("quantize", workspace, *asked)
    assert outcome.code == 0, outcome
    plan = json.loads((workspace / "quantize" / "attention" / "plan.json").read_text())
    products = [site for site in plan["sites"] if "bmm" in site["name"] and site["other"]]
    assert len(products) == 12
    for site in products:
        assert site["activation"]["scale"] > 0 and site["other"]["scale"] > 0
        assert {site["activation"]["grid"], site["other"]["grid"]} == {"fp8"}


@pytest.mark.parametrize(
    ("recipe", "weight", "activation", "least"),
    [
        ("mar-w8a8", "INT8 per-channel", "INT8 per-position", 35),
        ("mar-w6a6", "INT6 per-channel", "INT6 per-position", 25),
        ("mar-w8a16", "INT8 per-channel", "float", 45),
        ("mar-w4a16", "INT4 per-block of 32", "float", 25),
        ("mar-fp8", "FP8 per-channel", "FP8 per-position", 30),
    ],
)
def test_a_recipe_quantizes_the_transformers_of_a_mar(
    calibrated: Calibrated, recipe: str, weight: str, activation: str, least: float
) -> None:
    """The condition stays, on runs of its own images."""
    _, workspace = calibrated("mar")
    outcome = arvg("quantize", workspace, "--recipe", recipe)
    assert outcome.code == 0, outcome
    folder = workspace / "quantize" / recipe.partition("-")[2]
    results = json.loads((folder / MANIFEST).read_text())["results"]
    every = [s for s in results["sites"] if s["weight_sqnr_db"] is not None]
    assert len(every) == results["quantized"]
    denoiser = [s for s in every if s["name"].startswith("diffloss.")]
    # Its weights alone: with its inputs in 8 bits too, images of the same seed are lost.
    assert {(s["weight"], s["activation"]) for s in denoiser} == (
        {("INT8 per-channel", "float")} if recipe == "mar-w8a8" else set()
    )
    quantized = [s for s in every if s["graph"] != "decoder" and s not in denoiser]
    assert len(quantized) == 32 and (len(every) > 32) == (recipe == "mar-w8a8")
    assert {site["weight"] for site in quantized} == {weight}
    assert {site["activation"].split(",")[0] for site in quantized} == {activation}
    samples = workspace / "calibrate" / "samples"
    found = run_decibels(workspace / "export", folder, samples, ("pass",))
    assert min(found.values()) > least
    made = Generator.open(folder).generate([3], seed=0, iterations=4, diffusion_steps=20)
    assert made.images.shape == (1, 64, 64, 3)
