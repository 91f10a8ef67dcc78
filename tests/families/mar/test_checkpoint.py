"""MAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.config_json import read_beside
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.export.checkpoint.strict import split_parts
from arvg_trt.families.mar.checkpoint import infer_mar_config, load_mar
from arvg_trt.families.mar.config import PUBLISHED, MarJson, published_heads, sampling_of
from arvg_trt.families.mar.model import MarTransformer

from ..shared.models import Tensors, put, state_of
from .models import (
    CONFIG_JSON,
    FILES,
    SMALL,
    Payload,
    random_kl_vae,
    random_mar,
    write_checkpoint,
)

JSON = MarJson(num_heads=4, latent_scale=0.5)


@pytest.mark.parametrize(
    ("size", "parameters", "head"),
    [
        ("b", 207_924_768, 35_749_920),
        ("l", 478_326_304, 72_230_432),
        ("h", 942_403_104, 151_206_944),
    ],
)
def test_the_published_sizes_have_their_parameters(size: str, parameters: int, head: int) -> None:
    config, _ = PUBLISHED[size]
    with torch.device("meta"):
        model = MarTransformer(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.diffloss.parameters()) == head
    assert infer_mar_config(model.state_dict(), "here") == config


def test_the_published_sampling_is_the_default() -> None:
    found = {size: sampling_of(config) for size, (config, _) in PUBLISHED.items()}
    assert {size: s.cfg for size, s in found.items()} == {"b": 2.9, "l": 3.0, "h": 3.2}
    for s in found.values():
        assert (s.iterations, s.diffusion_steps, s.temperature, s.cfg_power) == (256, 100, 1, 1)
    assert sampling_of(SMALL).iterations == SMALL.length


def test_heads_are_known_of_published_sizes_alone() -> None:
    sizes = ((12, 768), (16, 1024), (20, 1280), (12, 1024), (4, 128))
    assert [published_heads(*size) for size in sizes] == [12, 16, 16, None, None]


@pytest.mark.parametrize(
    ("told", "key"),
    [
        (MarJson(), "encoder_num_heads"),
        (MarJson(encoder_num_heads=4), "decoder_num_heads"),
        (MarJson(decoder_num_heads=4), "encoder_num_heads"),
    ],
)
def test_heads_of_another_size_are_not_guessed(told: MarJson, key: str) -> None:
    with pytest.raises(ExportError, match=f"no official size, and no config.json says {key}") as e:
        load_mar(state_of(random_mar()), "mar.pth", told)
    assert key in str(e.value.do)


def test_each_half_has_its_own_width_heads_and_hidden() -> None:
    config = replace(SMALL, decoder_width=24, decoder_heads=3, decoder_hidden=40)
    told = MarJson(encoder_num_heads=4, decoder_num_heads=3, latent_scale=0.5)
    found = load_mar(state_of(random_mar(config)), "mar.pth", told)
    assert found.config == config
    assert found.decoder_blocks[0].attn.heads == 3  # type: ignore[union-attr]
    assert found.encoder_blocks[0].attn.heads == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (MarJson(num_heads=4, encoder_embed_dim=64), "width is 32 in the tensors, 64 in"),
        (MarJson(num_heads=4, decoder_depth=9), "decoder_depth is 3 in the tensors, 9 in"),
        (MarJson(num_heads=4, diffloss_w=9), "head_width is 24 in the tensors, 9 in"),
        (MarJson(num_heads=4, patch_size=2), "patch_size 2, and tokens of several latents"),
    ],
)
def test_what_official_names_say_must_agree(told: MarJson, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_mar(state_of(random_mar()), "mar.pth", told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_loads_strictly(dtype: torch.dtype) -> None:
    stored = {k: v.to(dtype) for k, v in state_of(random_mar()).items()}
    found = load_mar(stored, "here", JSON)
    assert found.config == SMALL
    assert all(torch.equal(v, stored[k].float()) for k, v in found.state_dict().items())


def test_the_averaged_weights_of_a_trainers_file_are_read(tmp_path: Path) -> None:
    """With the optimizer, the options and the last weights beside them, which are no use."""
    transformer, autoencoder = state_of(random_mar()), state_of(random_kl_vae())
    folder = write_checkpoint(tmp_path / "mar", transformer, autoencoder, CONFIG_JSON)
    found = split_parts(read_all([folder / name for name in FILES]))
    for part, wanted in zip(found, (transformer, autoencoder), strict=True):
        assert part.keys() == wanted.keys()
        assert all(torch.equal(part[k], v) for k, v in wanted.items())
    assert read_beside(folder, MarJson) == JSON


def test_a_payload_beside_the_options_does_not_run(tmp_path: Path) -> None:
    path, ran = tmp_path / FILES[0], tmp_path / "ran"
    torch.save({"model_ema": state_of(random_mar()), "args": Payload(ran)}, path)
    with pytest.raises(ExportError, match=r"its pickle asks for posix\.mkdir") as caught:
        read_all([path])
    assert str(caught.value).startswith(str(path))
    assert not ran.exists()
    pickle.loads(pickle.dumps(Payload(ran)))  # the payload is a real one
    assert ran.exists()


FC1 = "decoder_blocks.2.mlp.fc1.weight"
LINEAR = "diffloss.net.final_layer.linear.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mask_token"), "missing mask_token"),
        (lambda s: s.pop("class_emb.weight"), r"is not a MAR: no class_emb\.weight"),
        (put("head.weight", 3, 3), r"unexpected head\.weight"),
        (put(FC1, 48, 31), rf"{FC1} has shape \[48, 31\], not \[48, 32\]"),
        (put(LINEAR, 4, 24), rf"{LINEAR} has shape \[4, 24\], not \[8, 24\]"),
        (put("diffusion_pos_embed_learned", 1, 15, 32), "images of 15 tokens, not a square"),
        (put("diffusion_pos_embed_learned", 1, 25, 32), "has buffer -6 below 1"),
        (put("diffloss.net.time_embed.mlp.0.weight", 24, 15), "15 sines and cosines"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[Tensors], object], message: str
) -> None:
    state = state_of(random_mar())
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_mar(state, "mar.pth", JSON)
    assert str(caught.value).startswith("mar.pth: ")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (MarJson(num_heads=5), "encoder width 32, not a multiple of 5 heads"),
        (MarJson(num_heads=0), "heads 0 below 1"),
        (MarJson(num_heads=4, latent_scale=0.0), "latent_scale 0.0"),
    ],
)
def test_odd_values_of_the_config_json_are_refused(told: MarJson, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_mar(state_of(random_mar()), "mar.pth", told)
