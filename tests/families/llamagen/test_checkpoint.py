"""LlamaGen checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.base import Variant
from arvg_trt.families.llamagen.checkpoint import infer_llamagen_config, load_llamagen
from arvg_trt.families.llamagen.config import PUBLISHED, sampling_of
from arvg_trt.families.llamagen.export import LlamagenExporter
from arvg_trt.families.llamagen.model import LlamagenTransformer
from arvg_trt.families.llamagen.variants import VARIANTS
from arvg_trt.families.shared.llama.config import LlamaConfig, LlamaJson
from arvg_trt.families.variants import check_config, find_model

from ..par.models import official_tokenizer, random_par
from ..par.models import random_llamagen as random_vq
from ..rar.test_checkpoint import Payload, cache_file, put, without
from ..rar.test_export import job
from .models import FILES, JSON, SMALL, random_llamagen, write_checkpoint

Tensors = dict[str, Tensor]
CONFIG_JSON = LlamaJson(**JSON)
QKV = "layers.1.attention.wqkv.weight"


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return dict(random_llamagen().state_dict())


def vq() -> Tensors:
    return official_tokenizer(dict(random_vq().state_dict()))


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


@pytest.mark.parametrize(
    ("told", "key"),
    [
        (LlamaJson(), "n_head"),
        (LlamaJson(n_head=2), "block_size"),
        (LlamaJson(block_size=16), "n_head"),
    ],
)
def test_what_no_shape_tells_is_not_guessed(told: LlamaJson, key: str, tensors: Tensors) -> None:
    with pytest.raises(ExportError, match=f"no official size, and no config.json says {key}"):
        infer_llamagen_config(tensors, "here", told)


def test_config_json_tells_what_shapes_do_not() -> None:
    odd = replace(SMALL, norm_eps=1e-3, rope_base=500.0)
    told = LlamaJson(**JSON, norm_eps=1e-3, rope_base=500, n_layer=2)
    assert infer_llamagen_config(on_meta(odd).state_dict(), "here", told) == odd


@pytest.mark.parametrize("kind", ["model", "module", "state_dict", "bare", "safetensors", "half"])
def test_every_file_form_loads_the_same_model(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    """DDP wraps, FSDP does not; the angles that a file may have are computed here."""
    stored = {k: v.bfloat16() for k, v in tensors.items()} if kind == "half" else tensors
    own = stored | {"freqs_cis": torch.zeros(SMALL.length, SMALL.head_dim // 2, 2)}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", None, vq())
    if kind == "safetensors":
        (checkpoint / FILES[1]).unlink()
        for name, part in zip(FILES, (own, vq()), strict=True):
            save_file(part, (checkpoint / name).with_suffix(".safetensors"))
    else:
        key = "model" if kind == "half" else kind
        extra = {"optimizer": {"state": {}}, "steps": 3}
        torch.save(own if kind == "bare" else {key: own, **extra}, checkpoint / FILES[0])
    model, tokenizer = LlamagenExporter().load(job("llamagen", checkpoint))
    assert model.config == SMALL and tokenizer.config.vocab_size == SMALL.vocab_size
    assert all(torch.equal(v, stored[k].float()) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QKV), f"missing {QKV}"),
        (without("norm.weight"), "missing norm.weight"),
        (
            without("cls_embedding.embedding_table.weight"),
            "is not a class-conditional LlamaGen transformer: no cls_embedding",
        ),
        (put("layers.1.attention.wqkv.bias", 96), r"unexpected layers\.1\.attention\.wqkv\.bias"),
        (put(QKV, 64, 32), rf"{QKV} has shape \[64, 32\], not \[96, 32\]"),
        (put("output.weight", 47, 32), r"output\.weight has shape \[47, 32\], not \[48, 32\]"),
        (put("cls_embedding.embedding_table.weight", 1, 32), "num_classes 0: too small"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[Tensors], None], message: str, tensors: Tensors
) -> None:
    state = dict(tensors)
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_llamagen(state, "c2i_B_256.pt", CONFIG_JSON)
    assert str(caught.value).startswith("c2i_B_256.pt: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (LlamaJson(n_head=3, block_size=16), "width 32, not a multiple of 4 in each of 3 heads"),
        (LlamaJson(n_head=2, block_size=15), "images of 15 tokens, not a square"),
        (LlamaJson(n_head=2, block_size=0), "length 0: too small"),
        (LlamaJson(n_head=2, block_size=16, n_layer=3), "depth is 2 in the tensors, 3 in config"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(
    told: LlamaJson, message: str, tensors: Tensors
) -> None:
    with pytest.raises(ExportError, match=message):
        load_llamagen(tensors, "here", told)


def test_a_par_is_refused_by_its_name() -> None:
    """It has the same keys and its special tokens."""
    state = dict(random_par().state_dict())
    with pytest.raises(ExportError, match=r"but a PAR: it has spe_tok_embeddings \(export it as"):
        load_llamagen(state, "PAR-XL-4x.pt", CONFIG_JSON)


def test_a_payload_in_the_file_is_named_and_does_not_run(tmp_path: Path, tensors: Tensors) -> None:
    trap = tmp_path / "ran"
    state = tensors | {"extra": Payload(trap)}  # type: ignore[dict-item]
    checkpoint = write_checkpoint(tmp_path / "checkpoint", state, vq())
    with pytest.raises(ExportError, match=r"its pickle asks for \w"):
        LlamagenExporter().load(job("llamagen", checkpoint))
    assert not trap.exists()


def test_both_files_come_from_one_repository(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = find_model("llamagen-b-256")
    assert entry.hub == "FoundationVision/LlamaGen"
    first = cache_file(empty_cache, entry.hub, FILES[0])
    wanted = [first, first.with_name(FILES[1])]
    wanted[1].touch()
    assert resolve_checkpoint(entry.hub, entry.files, entry.elsewhere) == wanted
