"""A tiny MAR's checkpoint through the stages, and checkpoints that do not make a MAR."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.mar.config import PUBLISHED
from arvg_trt.families.mar.export import MarExporter, generator_spec
from arvg_trt.families.mar.spec import MarDefaults
from arvg_trt.families.rar.export import RarExporter
from arvg_trt.families.variants import find_model
from arvg_trt.runtime.generator import Generator
from arvg_trt.workspace.manifest import Manifest, write_manifest

from ...command_line import arvg, assert_refused, leftovers
from ..rar.models import random_maskgit, random_rar
from ..shared.models import Tensors, assert_exporter_refuses, job, state_of
from ..var.models import SMALL as SMALL_VAR
from ..var.models import random_var
from ..var.toy_var import ToyVar
from .models import (
    AUTOENCODER,
    CONFIG_JSON,
    FILES,
    SMALL,
    Payload,
    TinyMar,
    random_kl_vae,
    random_mar,
    write_checkpoint,
)


def transformer() -> Tensors:
    return state_of(random_mar())


def autoencoder(latent_channels: int = AUTOENCODER.latent_channels) -> Tensors:
    config = replace(AUTOENCODER, latent_channels=latent_channels)
    return state_of(random_kl_vae(config))


def test_published_sizes_have_the_published_sampling() -> None:
    spec = generator_spec(PUBLISHED["h"][0], 16)
    assert (spec.side, spec.image_size, spec.latent_channels) == (16, 256, 16)
    assert spec.defaults == MarDefaults(cfg=3.2, iterations=256, diffusion_steps=100)


def test_the_workspace_generates_images(tiny_mar: TinyMar, tmp_path: Path) -> None:
    places = ("-o", tmp_path / "out", "--npz", tmp_path / "x.npz", "--tokens", tmp_path / "t.npz")
    options = ("--iterations", 3, "--diffusion-steps", 4, "--temperature", 0.9, "--cfg", 2)
    outcome = arvg(
        "generate", tiny_mar.workspace, "--labels", "0-4", "--batch-size", 2, *options, *places
    )
    assert outcome.code == 0, outcome
    images = np.load(tmp_path / "x.npz")["arr_0"]
    with np.load(tmp_path / "t.npz") as file:
        assert file.files == ["latents"]
        latents = file["latents"]
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    assert latents.shape == (5, 4, 4, 4) and latents.dtype == np.float32
    wanted = Generator.open(tiny_mar.workspace).generate(
        range(5), iterations=3, diffusion_steps=4, temperature=0.9, cfg=2.0, batch_size=2
    )
    assert np.array_equal(latents, wanted.tokens) and np.array_equal(images, wanted.images)
    assert len(list((tmp_path / "out").iterdir())) == 6
    greedy = arvg(
        "generate",
        tiny_mar.workspace,
        "--labels",
        1,
        "--greedy",
        *options,
        "--json",
        "--force",
        *places[-2:],
    )
    sampling = json.loads(greedy.out)["sampling"]
    assert (sampling["greedy"], sampling["iterations"], sampling["cfg_power"]) == (True, 3, 1.0)


def test_pictures_are_encoded_to_latents_and_decoded(tiny_mar: TinyMar, tmp_path: Path) -> None:
    picture = tmp_path / "out" / "00000_0.png"
    options = ("--iterations", 2, "--diffusion-steps", 2)
    arvg("generate", tiny_mar.workspace, "--labels", 0, *options, "-o", picture.parent)
    latents = tmp_path / "t.npz"
    assert arvg("encode", tiny_mar.folder, picture, "-o", latents).code == 0
    assert np.load(latents)["latent_0"].shape == (1, 4, 4, 4)
    outcome = arvg("decode", tiny_mar.folder, latents, "-o", tmp_path / "back")
    assert outcome.out == f"{tmp_path / 'back' / '00000_0.png'}\n"


def test_options_of_a_mar_are_refused_by_the_others(tmp_path: Path) -> None:
    folder = ToyVar().save(tmp_path / "toy")
    write_manifest(folder, Manifest(stage="export", inputs={}, options={}, versions={}), {})
    outcome = arvg("generate", folder, "--labels", 0, "-o", tmp_path / "out", "--iterations", 8)
    assert_refused(outcome, 10, "iterations is not this family's")


def test_the_folders_of_the_official_download_are_found(tmp_path: Path) -> None:
    """pretrained_models/mar/mar_base and pretrained_models/vae."""
    for name in ("mar/mar_base/checkpoint-last.pth", "vae/kl16.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = resolve_checkpoint(str(tmp_path), find_model("mar-b").files)
    assert [p.name for p in found] == list(FILES)
    (tmp_path / "mar/mar_large").mkdir()
    (tmp_path / "mar/mar_large/checkpoint-last.pth").touch()
    outcome = arvg("export", "mar", tmp_path / "ws", "--checkpoint", tmp_path)
    assert_refused(
        outcome, 4, "several checkpoints: mar/mar_base/checkpoint-last, mar/mar_large/checkpoint"
    )


def test_what_trained_the_autoencoder_is_left_out(tmp_path: Path) -> None:
    beside = autoencoder() | {"loss.perceptual_loss.net.0.weight": torch.zeros(3)}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), beside, CONFIG_JSON)
    model, vae = MarExporter().load(job("mar", checkpoint))
    assert model.config == SMALL and vae.config == AUTOENCODER


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: write_checkpoint(f, transformer(), None), ("has no tokenizer", FILES[1])),
        (
            lambda f: write_checkpoint(f, None, autoencoder()),
            ("holds a KL autoencoder, not a MAR transformer",),
        ),
        (
            lambda f: write_checkpoint(
                f,
                transformer() | {"decoder_norm.bias": torch.zeros(31)},
                autoencoder(),
                CONFIG_JSON,
            ),
            ("decoder_norm.bias has shape [31], not [32]",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), autoencoder(6), CONFIG_JSON),
            ("another model's: latent_channels is 4 in the transformer, 6 in it",),
        ),
        (
            lambda f: write_checkpoint(f, state_of(random_rar()), autoencoder()),
            ("holds a RAR transformer and a KL autoencoder, not a MAR transformer",),
        ),
        (
            lambda f: write_checkpoint(f, state_of(random_var(SMALL_VAR)), autoencoder()),
            ("NaN or infinity in attn_bias_for_masking",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), state_of(random_maskgit()), CONFIG_JSON),
            ("is not a KL autoencoder",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), autoencoder(), {"num_heads": 5}),
            ("width 32, not a multiple of 5 heads", "config.json"),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), autoencoder(), {"latent_scale": "x"}),
            ("config.json: cannot be read",),
        ),
    ],
    ids=[
        "no autoencoder",
        "no transformer",
        "misshapen",
        "another latent",
        "a RAR",
        "a VAR",
        "RAR's tokenizer",
        "odd heads",
        "odd config.json",
    ],
)
def test_a_checkpoint_that_is_no_mar_is_refused(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_exporter_refuses(MarExporter(), "mar", make(tmp_path / "checkpoint"), *words)


def test_a_mar_is_refused_as_a_rar(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", transformer(), autoencoder(), CONFIG_JSON
    )
    for path, name in zip(FILES, ("rar_b.bin", "maskgit-vqgan-imagenet-f16-256.bin"), strict=True):
        (checkpoint / path).rename(checkpoint / name)
    words = "holds a MAR transformer and a KL autoencoder, not a RAR transformer"
    assert_exporter_refuses(RarExporter(), "rar-b", checkpoint, words)


def test_a_variant_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", transformer(), autoencoder(), CONFIG_JSON
    )
    words = ("is not mar-b: ", "width is 32, not 768")
    assert_exporter_refuses(MarExporter(), "mar-b", checkpoint, *words)


def test_more_passes_than_tokens_are_refused_before_the_graphs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="17 iterations over 16 tokens"):
        generator_spec(SMALL, 2, MarDefaults(cfg=2.0, iterations=17))


@pytest.mark.usefixtures("one_process")
def test_a_checkpoint_with_a_payload_is_refused_and_does_not_run(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", None, autoencoder(), CONFIG_JSON)
    held = {"model_ema": transformer(), "args": Payload(tmp_path / "ran")}
    torch.save(held, checkpoint / FILES[0])
    outcome = arvg("export", "mar", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "its pickle asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)
