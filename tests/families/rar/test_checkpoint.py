"""RAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.families.base import Variant
from arvg_trt.families.rar.checkpoint import infer_rar_config
from arvg_trt.families.rar.config import DEMO, RarConfig, sampling_of
from arvg_trt.families.rar.model import RarTransformer
from arvg_trt.families.rar.variants import VARIANTS
from arvg_trt.families.variants import check_config

from .models import SMALL


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says_and_is_inferred(entry: Variant) -> None:
    assert isinstance(entry.config, RarConfig)
    with torch.device("meta"):
        model = RarTransformer(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert model.state_dict()["pos_embed"].shape[1] == entry.config.length + 1024
    assert model.state_dict()["timesteps_embeddings"].shape[1] == entry.config.length + 100
    found = infer_rar_config(model.state_dict(), "here")
    assert found == entry.config
    check_config(entry, found, "here")


def test_the_keys_are_the_official_ones() -> None:
    block = {
        f"{part}.{kind}"
        for part in (
            "norm1", "norm2", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "mlp.fc1",
            "mlp.fc2", "adaLN_modulation.1",
        )
        for kind in ("weight", "bias")
    }  # fmt: skip
    outside = {
        "cls_token", "embeddings.weight", "pos_embed", "target_aware_pos_embed",
        "timesteps_embeddings", "adaln_before_head.adaLN_modulation.1.weight",
        "adaln_before_head.adaLN_modulation.1.bias", "lm_head.weight", "lm_head.bias",
    }  # fmt: skip
    own = {f"blocks.{i}.{k}" for i in range(SMALL.depth) for k in block}
    assert RarTransformer(SMALL).state_dict().keys() == outside | own


def test_published_sampling_goes_with_the_size() -> None:
    found = [sampling_of(entry.config) for entry in VARIANTS]  # type: ignore[arg-type]
    assert [(s.cfg, s.cfg_power, s.temperature) for s in found] == [
        (16.0, 2.75, 1.0),
        (15.5, 2.5, 1.02),
        (6.9, 1.5, 1.02),
        (8.0, 1.2, 1.02),
        (4.0, 0.0, 1.0),  # the mini's: as of any size that was not published
    ]
    assert sampling_of(SMALL) == DEMO


@pytest.mark.parametrize("depth", [0, -1])
def test_sizes_below_one_are_refused(depth: int) -> None:
    with pytest.raises(ExportError, match=f"depth {depth} below 1"):
        replace(SMALL, depth=depth)
