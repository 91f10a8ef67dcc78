"""LlamaGen checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.families.base import Variant
from arvg_trt.families.llamagen.checkpoint import infer_llamagen_config
from arvg_trt.families.llamagen.config import PUBLISHED, sampling_of
from arvg_trt.families.llamagen.model import LlamagenTransformer
from arvg_trt.families.llamagen.variants import VARIANTS
from arvg_trt.families.shared.llama.config import LlamaConfig, LlamaJson
from arvg_trt.families.variants import check_config

from .models import SMALL


def on_meta(config: LlamaConfig) -> LlamagenTransformer:
    with torch.device("meta"):
        return LlamagenTransformer(config)


@pytest.mark.parametrize("entry", [e for e in VARIANTS if e.hub], ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says_and_is_inferred(entry: Variant) -> None:
    """The tensors of 256 and 384 pixels are alike: the variant tells the tokens of an image."""
    assert isinstance(entry.config, LlamaConfig)
    model = on_meta(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    state = model.state_dict()
    found = infer_llamagen_config(state, "here", length=entry.config.length)
    assert found == entry.config
    check_config(entry, found, "here")
    told = LlamaJson(block_size=entry.config.length)
    assert infer_llamagen_config(state, "here", told) == entry.config


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("b-256", (12, 768, 12, 2048, 256)),
        ("b-384", (12, 768, 12, 2048, 576)),
        ("l-384", (24, 1024, 16, 2816, 576)),
        ("xl-384", (36, 1280, 20, 3584, 576)),
        ("xxl-384", (48, 1536, 24, 4096, 576)),
        ("3b-384", (24, 3200, 32, 8704, 576)),
    ],
)
def test_published_sizes_are_the_official_ones(size: str, shape: tuple[int, ...]) -> None:
    c = PUBLISHED[size]
    assert (c.depth, c.width, c.heads, c.hidden, c.length) == shape
    assert (c.num_classes, c.vocab_size, c.rope_base, c.norm_eps) == (1000, 16384, 10000, 1e-5)


def test_the_keys_are_the_official_ones() -> None:
    layer = {
        f"{part}.weight"
        for part in (
            "attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
            "feed_forward.w3", "attention_norm", "ffn_norm",
        )
    }  # fmt: skip
    outside = {
        "cls_embedding.embedding_table.weight", "tok_embeddings.weight", "norm.weight",
        "output.weight",
    }  # fmt: skip
    own = {f"layers.{i}.{k}" for i in range(SMALL.depth) for k in layer}
    assert LlamagenTransformer(SMALL).state_dict().keys() == outside | own


def test_published_sampling_goes_with_the_size() -> None:
    found = {name: sampling_of(config) for name, config in PUBLISHED.items()}
    assert {name: s.cfg for name, s in found.items()} == {
        **{"b-256": 1.5, "b-384": 2.0, "l-256": 1.5, "l-384": 2.0},
        **{"xl-384": 1.75, "xxl-384": 1.75, "3b-384": 1.65},
    }
    assert {(s.top_k, s.top_p, s.temperature) for s in found.values()} == {(0, 1.0, 1.0)}
    assert sampling_of(SMALL).cfg == 1.5


def test_without_a_name_the_only_published_length_is_taken() -> None:
    state = on_meta(PUBLISHED["xl-384"]).state_dict()
    assert infer_llamagen_config(state, "here") == PUBLISHED["xl-384"]
    state = on_meta(PUBLISHED["l-256"]).state_dict()
    with pytest.raises(ExportError, match="is llamagen-l-256 or llamagen-l-384, ") as caught:
        infer_llamagen_config(state, "here")
    assert "block_size 256 or 576" in str(caught.value)
