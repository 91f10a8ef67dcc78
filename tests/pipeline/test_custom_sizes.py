"""Own-trained sizes through `arvg-trt export`: what is taken, said and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arvg_trt.families.cosmos.config import CosmosConfig
from arvg_trt.families.cosmos.model import CosmosTokenizer
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import Outcome, arvg, assert_refused, leftovers
from ..families.mar.models import AUTOENCODER, SMALL, random_kl_vae, random_mar

IMAGES = ("--images", "skimage:astronaut")


def export_mar(folder: Path, root: Path) -> Outcome:
    return arvg("export", "mar", root / "ws", "--checkpoint", folder, *IMAGES)


def mar_folder(root: Path, **told: object) -> Path:
    """A decoder narrower than the encoder, files of any names, a compiled model's snapshot."""
    config = replace(SMALL, decoder_width=24, decoder_heads=3, decoder_hidden=40)
    folder = root / "mine"
    folder.mkdir()
    state = random_mar(config).state_dict()
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    last = {name: torch.full_like(tensor, 7.0) for name, tensor in compiled.items()}
    torch.save({"model": last, "ema": compiled, "epoch": 3}, folder / "run7.pt")
    torch.save(random_kl_vae(AUTOENCODER).state_dict(), folder / "a_vae.ckpt")
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.usefixtures("one_process")
def test_a_mar_of_unequal_halves_is_exported_with_its_averages(tmp_path: Path) -> None:
    folder = mar_folder(tmp_path, encoder_num_heads=4, decoder_num_heads=3, latent_scale=0.5)
    outcome = export_mar(folder, tmp_path)
    assert outcome.code == 0, outcome
    assert "run7.pt: takes the averaged weights, ema, not model; --weights model" in outcome.out
    manifest = json.loads((tmp_path / "ws" / "export" / MANIFEST).read_text())
    assert {g["graph"] for g in manifest["results"]["parity"]["graphs"]} >= {"pass", "denoise"}


@pytest.mark.usefixtures("one_process")
def test_heads_that_nothing_tells_name_the_key(tmp_path: Path) -> None:
    folder = mar_folder(tmp_path, encoder_num_heads=4)
    assert_refused(export_mar(folder, tmp_path), 4, "no config.json says decoder_num_heads")
    assert not leftovers(tmp_path)


def small_cosmos() -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = CosmosConfig(
        channels=32, channels_mult=(1, 1), z_channels=32, levels=(8, 5, 5, 4, 4, 4)
    )
    return dict(CosmosTokenizer(config).state_dict())


def test_a_cosmos_of_another_width_is_exported(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_file(small_cosmos(), folder / "tokenizer_ema.safetensors")
    args = ("export", "cosmos", tmp_path / "ws", "--checkpoint", folder, *IMAGES)
    assert_refused(arvg(*args), 4, "neither a buffer nor a config.json says levels")
    (folder / "config.json").write_text('{"levels": [8, 5, 5, 4, 4, 4]}')
    assert arvg(*args).code == 0
    results = json.loads((tmp_path / "ws" / "export" / MANIFEST).read_text())["results"]
    assert results["tokenizer"]["levels"] == [8, 5, 5, 4, 4, 4]


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_weights_that_the_file_does_not_have_are_refused(tmp_path: Path, weights: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(small_cosmos(), path)
    args = ("export", "cosmos", tmp_path / "ws", "--checkpoint", path, "--weights", weights)
    assert_refused(arvg(*args), 4, "has no averaged weights beside others", "leave out --weights")
