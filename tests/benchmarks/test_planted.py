"""The random model has what is planted in it, checked on tensors inside a tiny one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arvg_trt.benchmarks.planted import CONFIG, planted_transformer, write_planted
from arvg_trt.families.var.checkpoint import load_var
from arvg_trt.families.var.export import generator_spec
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var_vqvae.model import load_var_vqvae

TINY = replace(CONFIG, depth=2, width=256, heads=4, hidden=256, patch_nums=(1, 2, 3), vocab_size=64)


def test_the_real_shape_is_that_of_the_issue() -> None:
    assert (CONFIG.depth, CONFIG.width, CONFIG.heads, CONFIG.length) == (4, 1024, 16, 256)


@pytest.fixture(scope="module")
def tiny() -> VarTransformer:
    return planted_transformer(TINY, seed=3)


def inputs_of(model: VarTransformer, path: str) -> torch.Tensor:
    """Return what a linear reads, [N, T, C], for classes and features from a seed."""
    seen = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    shape = (4, TINY.length - 1, TINY.latent_channels)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(torch.arange(4), features)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("linear", ["attn.mat_qkv", "ffn.fc1"])
def test_eight_channels_a_block_are_wide_and_off_centre(
    tiny: VarTransformer, block: int, linear: str
) -> None:
    path = f"blocks.{block}.{linear}"
    wide = inputs_of(tiny, path)[:, 1:].std(dim=(0, 1)) > 10
    assert wide.sum() == 8
    with torch.no_grad():
        rows = tiny.get_submodule(f"blocks.{block}").modulation(tiny.class_emb.weight)
    half = int(linear == "ffn.fc1")
    gain, shift = rows[:, 2 + half], rows[:, 4 + half]
    assert (gain[:, wide] == 30).all() and (shift[:, wide] == 10).all()
    assert gain[:, ~wide].mean().item() == pytest.approx(1, abs=0.05)
    assert 0.3 < gain[:, ~wide].std().item() < 0.9
    columns = tiny.get_submodule(path).weight.std(dim=0)
    assert (columns[wide].mean() / columns[~wide].mean()).item() == pytest.approx(1 / 15, rel=0.1)


def test_the_first_token_is_extreme_in_two_wide_channels(tiny: VarTransformer) -> None:
    read = inputs_of(tiny, "blocks.0.attn.mat_qkv").abs()
    first, later = read[:, 0], read[:, 1:].amax(dim=(0, 1))
    assert ((first > 2 * later).sum(dim=1) == 2).all()
    assert first.amax() > 3 * later.amax()


def test_the_seed_decides_the_checkpoint_and_it_loads_as_a_var(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_planted(tmp_path / name, TINY, seed)
    files = ["model.safetensors", "vae.safetensors"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == files
    for name in files:
        a, b, c = ((tmp_path / k / name).read_bytes() for k in "abc")
        assert a == b and a != c
    model = load_var(load_file(tmp_path / "a" / files[0]), "a")
    vae = load_var_vqvae(load_file(tmp_path / "a" / files[1]), "a", model.config.patch_nums)
    assert model.config == TINY
    assert generator_spec(model.config, vae).latent_size == 3
