"""PAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.config_json import read_beside
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.base import Variant
from arvg_trt.families.par.checkpoint import infer_par_config
from arvg_trt.families.par.config import PUBLISHED, ParConfig, ParJson, sampling_of
from arvg_trt.families.par.model import ParTransformer
from arvg_trt.families.par.variants import VARIANTS
from arvg_trt.families.variants import check_config, find_model

from .models import (
    FILES,
    SMALL,
)


def on_meta(config: ParConfig) -> ParTransformer:
    with torch.device("meta"):
        return ParTransformer(config)


@pytest.mark.parametrize("entry", [e for e in VARIANTS if e.hub], ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says_and_is_inferred(entry: Variant) -> None:
    """Without any config.json: the heads of a published width are known, also of 100 features."""
    assert isinstance(entry.config, ParConfig)
    model = on_meta(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    found = infer_par_config(model.state_dict(), "here")
    assert found == entry.config
    check_config(entry, found, "here")
    heads = {1024: 16, 1280: 20, 1536: 24, 3200: 32}[found.width]
    assert (found.heads, found.length, found.vocab_size) == (heads, 576, 16384)


def test_the_keys_are_the_official_ones() -> None:
    layer = {
        f"{part}.weight"
        for part in (
            "attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
            "feed_forward.w3", "attention_norm", "ffn_norm",
        )
    }  # fmt: skip
    outside = {
        "cls_embedding.embedding_table.weight", "tok_embeddings.weight",
        "spe_tok_embeddings.special_embeddings.weight", "norm.weight", "output.weight",
    }  # fmt: skip
    own = {f"layers.{i}.{k}" for i in range(SMALL.depth) for k in layer}
    assert ParTransformer(SMALL).state_dict().keys() == outside | own


def test_published_sampling_goes_with_the_size_and_the_group() -> None:
    found = {name: sampling_of(config) for name, config in PUBLISHED.items()}
    assert {name: s.cfg for name, s in found.items() if s.cfg != 1.5} == {
        "xxl-4x": 1.435,
        "3b-4x": 1.345,
    }
    assert {(s.top_k, s.top_p, s.temperature) for s in found.values()} == {(0, 1.0, 1.0)}
    assert sampling_of(SMALL).cfg == 1.5


@pytest.mark.parametrize("width", [1024, 1280, 1536, 3200])
def test_the_hidden_width_is_the_official_one(width: int) -> None:
    hidden = {1024: 2816, 1280: 3584, 1536: 4096, 3200: 8704}
    assert ParConfig(1, width, 1).hidden == hidden[width]


def test_a_published_width_of_another_depth_is_no_official_size() -> None:
    state = on_meta(ParConfig(2, 3200, 32)).state_dict()
    with pytest.raises(ExportError, match=r"2 layers of width 3200, no official size.*n_head"):
        infer_par_config(state, "here")


def test_an_official_size_that_was_not_published_has_heads_and_no_length() -> None:
    """GPT-B of the official code."""
    state = on_meta(ParConfig(12, 768, 12)).state_dict()
    with pytest.raises(ExportError, match="says block_size"):
        infer_par_config(state, "here")
    assert infer_par_config(state, "here", ParJson(block_size=256)).heads == 12


def test_a_config_json_that_is_none_is_refused(tmp_path: Path) -> None:
    assert read_beside(tmp_path, ParJson) == ParJson()
    (tmp_path / "config.json").write_text(json.dumps({"n_head": "many", "model_type": "c2i"}))
    with pytest.raises(ExportError, match=r"config\.json: cannot be read: .*n_head"):
        read_beside(tmp_path, ParJson)


def test_the_eighth_tokenizer_is_taken_where_the_sixteenth_is_not(tmp_path: Path) -> None:
    names = ("PAR-XL-4x.pt", "vq_ds8_c2i.pt")
    for name in names:
        (tmp_path / name).touch()
    entry = find_model("par-xl-4x")
    assert resolve_checkpoint(str(tmp_path), entry.files) == [tmp_path / name for name in names]
    (tmp_path / FILES[1]).touch()
    assert resolve_checkpoint(str(tmp_path), entry.files)[1] == tmp_path / FILES[1]
