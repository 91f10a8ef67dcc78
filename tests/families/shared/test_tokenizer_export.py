"""The tokenizers of generators exported alone, from the file that is published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from arvg_trt.errors import CalibrationError, ExportError
from arvg_trt.families.var_vqvae.config import VarVqvaeConfig
from arvg_trt.families.variants import find_model
from arvg_trt.recipe.file import encode_recipe
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.runtime.families import find_family
from arvg_trt.runtime.images import center_crop, to_model
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.images import open_source
from arvg_trt.workspace.workspace import RECIPE_FILE

from ...command_line import arvg, assert_refused
from ...one_process import exporting_here
from ..mar.models import random_kl_vae
from ..par.models import official_tokenizer, random_llamagen
from ..rar.models import random_maskgit
from ..var_vqvae.models import random_vqvae
from .models import state_of

SCALES = (1, 2, 6)  # of images with a side of 12, which SSIM can measure
SMALL_VQVAE = VarVqvaeConfig(
    channels=32,
    channels_mult=(1, 2),
    num_res_blocks=1,
    latent_channels=8,
    vocab_size=64,
    patch_nums=SCALES,
    phis=2,
)
# What makes a model, the file that holds it, and the sizes of images that it is tried on.
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "maskgit-vq": (random_maskgit, "maskgit-vqgan-imagenet-f16-256.bin"),
    "llamagen-vq": (random_llamagen, "vq_ds16_c2i.pt"),
    "kl-16": (random_kl_vae, "kl16.ckpt"),
    "var-vqvae": (lambda: random_vqvae(SMALL_VQVAE), "vae_ch160v4096z32.pth"),
}


def write_file(name: str, model: nn.Module, folder: Path) -> Path:
    folder.mkdir()
    tensors = state_of(model)
    if name == "llamagen-vq":
        tensors = official_tokenizer(tensors)
    if name == "var-vqvae":
        (folder / "config.json").write_text(json.dumps({"patch_nums": SCALES}))
    torch.save(tensors, folder / MODELS[name][1])
    return folder / MODELS[name][1]


@pytest.fixture(scope="module", params=list(MODELS))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Path]:
    """The name, the model in PyTorch, and the workspace."""
    root = tmp_path_factory.mktemp(request.param)
    model = MODELS[request.param][0]()
    checkpoint = write_file(request.param, model, root / "checkpoint")
    given = ("--checkpoint", checkpoint, "--images", "skimage:astronaut")
    with exporting_here():
        outcome = arvg("export", request.param, root / "ws", *given)
    assert outcome.code == 0, outcome
    return request.param, model, root / "ws"


def image_of(name: str) -> np.ndarray:
    side = SMALL_VQVAE.image_size if name == "var-vqvae" else 64
    return to_model(center_crop(open_source("skimage:coffee").load(0), side))


def test_its_graphs_are_the_model(exported: tuple[str, Any, Path]) -> None:
    name, model, workspace = exported
    image = image_of(name)
    codec = ImageTokenizer.reference(workspace / "export")
    tokens, latent = codec.encode(image)
    with torch.inference_mode():
        wanted = model.encode(torch.from_numpy(image))
        np.testing.assert_allclose(latent, wanted, atol=1e-4)
        if name == "kl-16":
            assert tokens is None and not codec.discrete
            decoded = model.decode(wanted)
        else:
            assert tokens is not None
            ids = torch.from_numpy(tokens).long()
            own = model.quantize.encode(wanted) if name == "var-vqvae" else model.codes(wanted)
            assert (ids == own).float().mean() > 0.99  # but for ties
            if name == "var-vqvae":
                decoded = model.decode(model.quantize.decode(ids))
            else:
                decoded = model.decode(ids)
    back = codec.decode(latent if tokens is None else tokens)
    np.testing.assert_allclose(back, decoded, atol=1e-3)


def test_a_manifest_says_what_later_stages_need(exported: tuple[str, Any, Path]) -> None:
    name, model, workspace = exported
    results = json.loads((workspace / "export/manifest.json").read_text())["results"]
    facts = results["tokenizer"]
    assert facts["discrete"] == (name != "kl-16")
    assert facts["stride"] == model.config.stride
    assert results["parameters"] == sum(p.numel() for p in model.parameters())
    if name == "var-vqvae":
        assert (facts["fixed_size"], facts["tokens"]) == (12, sum(p * p for p in SCALES))
    else:
        assert "fixed_size" not in facts


@pytest.fixture(scope="module")
def quantized(
    exported: tuple[str, Any, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """The name, the workspace of the export, and that of its INT8 graphs."""
    name, _, exports = exported
    workspace = tmp_path_factory.mktemp(f"{name}-int8") / "ws"
    shutil.copytree(exports, workspace)
    size = image_of(name).shape[-1]
    given = ("--images", "skimage:rocket", "--samples", 2, "--size", size)
    assert arvg("calibrate", workspace, *given).code == 0
    outcome = arvg("quantize", workspace, "--name", "int8", "--smoothing", 0)
    assert outcome.code == 0, outcome
    return name, exports, workspace


def test_pytorch_has_a_second_opinion_on_it(quantized: tuple[str, Path, Path]) -> None:
    name, exports, workspace = quantized
    checkpoint = exports.parent / "checkpoint" / MODELS[name][1]
    recipe = Recipe(name="int8", model=name, checkpoint=str(checkpoint), workspace=str(workspace))
    (workspace / RECIPE_FILE).write_text(encode_recipe(recipe))
    size = image_of(name).shape[-1]
    given = ("--images", "skimage:coffee", "--size", size, "--rounds", 0, "--skip-engine")
    outcome = arvg("validate", workspace, "--name", "int8", *given, "--second-opinion")
    assert outcome.code == 0, outcome
    report = json.loads((workspace / "validate/int8/report.json").read_text())
    rows = [row for row in report["second_opinions"] if row["by"] == "torch"]
    assert [(row["candidate"], row["graph"]) for row in rows] == [
        ("fp32", "encoder"),
        ("fp32", "decoder"),
    ]
    assert all(row["agrees"] for row in rows), rows


def test_searches_lookups_and_phi_stay_exact_in_eight_bits(
    quantized: tuple[str, Path, Path],
) -> None:
    name, exports, workspace = quantized
    sites = json.loads((workspace / "export/sites.json").read_text())["sites"]
    exact = [s for s in sites if s["role"] in ("codes", "phi", "resize")]
    assert bool(exact) == (name != "kl-16")
    plan = json.loads((workspace / "quantize/int8/plan.json").read_text())["sites"]
    weighted = {entry["name"] for entry in plan if entry["weight"]}
    assert {s["graph"] for s in sites if s["name"] in weighted} == {"encoder", "decoder"}
    for site in exact:
        assert site["name"] not in weighted
        wanted, found = (
            initializer(workspace / folder / f"{site['graph']}.onnx", site["weight"])
            for folder in ("export", "quantize/int8")
        )
        assert np.array_equal(wanted, found)
    # Of FP32's tokens both decoders look up the same: only rounded convolutions differ.
    codec = ImageTokenizer.reference(exports / "export")
    tokens, latent = codec.encode(image_of(name))
    quantized = ImageTokenizer.reference(workspace / "quantize/int8")
    wanted, found = (c.decode(latent if tokens is None else tokens) for c in (codec, quantized))
    noise = np.square(wanted - found).mean() / np.square(wanted).mean()
    assert noise < 0.03


def initializer(path: Path, name: str) -> np.ndarray:
    held = {t.name: t for t in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(held[name])


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("maskgit-vq", "llamagen-vq"),
        ("llamagen-vq", "kl-16"),
        ("kl-16", "maskgit-vq"),
        ("var-vqvae", "maskgit-vq"),
    ],
)
def test_the_file_of_another_tokenizer_is_refused_by_its_name(
    asked: str, given: str, tmp_path: Path
) -> None:
    path = write_file(given, MODELS[given][0](), tmp_path / "checkpoint")
    with exporting_here():
        outcome = arvg("export", asked, tmp_path / "ws", "--checkpoint", path)
    families = [find_model(name).family for name in (given, asked)]
    parts = [find_family(name).load_exporter().part for name in families]
    what = f"holds {parts[0]}, not {parts[1]}"
    assert_refused(outcome, ExportError.exit_code, what, f"export it as {given}")
    assert not (tmp_path / "ws" / "export").exists()


def test_scales_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    path = write_file("var-vqvae", MODELS["var-vqvae"][0](), tmp_path / "checkpoint")
    (path.parent / "config.json").unlink()
    with exporting_here():
        outcome = arvg("export", "var-vqvae", tmp_path / "ws", "--checkpoint", path)
    assert_refused(outcome, ExportError.exit_code, "has 3 scales", "patch_nums")


def test_images_of_another_size_than_the_scales_are_refused(
    exported: tuple[str, Any, Path], tmp_path: Path
) -> None:
    name, _, workspace = exported
    if name != "var-vqvae":
        pytest.skip("takes images of any size")
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    outcome = arvg("calibrate", copy, "--images", "skimage:rocket", "--size", 64)
    assert_refused(outcome, CalibrationError.exit_code, "sample size 64 is not the 12", "--size 12")
