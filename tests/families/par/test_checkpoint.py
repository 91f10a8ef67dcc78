"""PAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.config_json import read_beside
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.export.checkpoint.strict import split_parts
from arvg_trt.families.base import Variant
from arvg_trt.families.par.checkpoint import infer_par_config, load_par
from arvg_trt.families.par.config import PUBLISHED, ParConfig, ParJson, sampling_of
from arvg_trt.families.par.model import ParTransformer
from arvg_trt.families.par.variants import VARIANTS
from arvg_trt.families.variants import check_config, find_model

from ..rar.models import random_rar
from ..rar.test_checkpoint import Payload, cache_file, put, without
from .models import (
    FILES,
    JSON,
    SMALL,
    WIDE,
    official_tokenizer,
    random_llamagen,
    random_par,
    write_checkpoint,
)

Tensors = dict[str, Tensor]
CONFIG_JSON = ParJson(**JSON)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return dict(random_par().state_dict())


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


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["4x", "16x"])
def test_config_json_tells_what_shapes_do_not(config: ParConfig) -> None:
    told = ParJson(n_head=config.heads, block_size=config.length)
    assert infer_par_config(on_meta(config).state_dict(), "here", told) == config
    odd = replace(config, norm_eps=1e-3, rope_base=500.0)
    told = ParJson(
        n_head=config.heads, block_size=config.length, norm_eps=1e-3, rope_base=500, n_layer=2
    )
    assert infer_par_config(on_meta(odd).state_dict(), "here", told) == odd


@pytest.mark.parametrize(
    ("told", "key"),
    [(ParJson(), "n_head"), (ParJson(n_head=2), "block_size"), (ParJson(block_size=16), "n_head")],
)
def test_what_no_shape_tells_is_not_guessed(told: ParJson, key: str, tensors: Tensors) -> None:
    with pytest.raises(ExportError, match=f"no official size, and no config.json says {key}"):
        infer_par_config(tensors, "here", told)


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


@pytest.mark.parametrize("kind", ["model", "module", "state_dict", "bare", "safetensors", "half"])
def test_every_file_form_loads_the_same_model(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    """DDP, DeepSpeed and FSDP wrap differently; a trainer's optimizer beside them is not read."""
    tokenizer = official_tokenizer(dict(random_llamagen().state_dict()))
    stored = {k: v.bfloat16() for k, v in tensors.items()} if kind == "half" else tensors
    if kind == "safetensors":
        for name, part in zip(FILES, (tensors, tokenizer), strict=True):
            save_file(part, tmp_path / Path(name).with_suffix(".safetensors"))
    else:
        key = "model" if kind == "half" else kind
        extra = {"optimizer": {"state": {}}, "steps": 3}
        whole = stored if kind == "bare" else {key: stored, **extra}
        torch.save(whole, tmp_path / FILES[0])
        torch.save({"model": tokenizer, "ema": tokenizer, "steps": 3}, tmp_path / FILES[1])
    paths = resolve_checkpoint(str(tmp_path), find_model("par").files)
    transformer, rest = split_parts(read_all(paths))
    assert rest.keys() == tokenizer.keys()
    found = load_par(transformer, str(tmp_path), CONFIG_JSON)
    assert all(torch.equal(v, stored[k].float()) for k, v in found.state_dict().items())
    assert found.config == SMALL


def test_float32_weights_stay_where_the_file_is_mapped(tmp_path: Path, tensors: Tensors) -> None:
    torch.save({"model": tensors}, tmp_path / FILES[0])
    read = read_all([tmp_path / FILES[0]])
    found = load_par(read, "here", CONFIG_JSON).state_dict()
    assert all(v.data_ptr() == read[k].data_ptr() for k, v in found.items())


QKV = "layers.1.attention.wqkv.weight"
SPECIAL = "spe_tok_embeddings.special_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QKV), f"missing {QKV}"),
        (without("norm.weight"), "missing norm.weight"),
        (without(SPECIAL), rf"is not a PAR transformer: no {SPECIAL}"),
        (put("layers.1.attention.wqkv.bias", 96), r"unexpected layers\.1\.attention\.wqkv\.bias"),
        (put(QKV, 64, 32), rf"{QKV} has shape \[64, 32\], not \[96, 32\]"),
        (put("output.weight", 47, 32), r"output\.weight has shape \[47, 32\], not \[48, 32\]"),
        (put("cls_embedding.embedding_table.weight", 1, 32), "num_classes 0: too small"),
        (put(SPECIAL, 4, 32), "predicts 5 tokens at once, not one of each of 2x2"),
        (put(SPECIAL, 15, 32), "predicts 16 tokens at once, .* of several cells of a map of 4x4"),
        (put(SPECIAL, 0, 32), "predicts 1 tokens at once"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[Tensors], None], message: str, tensors: Tensors
) -> None:
    state = dict(tensors)
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_par(state, "PAR-XL-4x.pt", CONFIG_JSON)
    assert str(caught.value).startswith("PAR-XL-4x.pt: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (ParJson(n_head=3, block_size=16), "width 32, not a multiple of 4 in each of 3 heads"),
        (ParJson(n_head=2, block_size=10**12), "images of 1000000000000 tokens, over"),
        (ParJson(n_head=2, block_size=15), "images of 15 tokens, not a square"),
        (ParJson(n_head=2, block_size=25), "predicts 4 tokens at once"),
        (ParJson(n_head=2, block_size=-4), "length -4: too small"),
        (ParJson(n_head=2, block_size=16, norm_eps=0.0), r"norm_eps 0.0: too small"),
        (
            ParJson(n_head=2, block_size=16, n_layer=3, ar_token_num=16),
            "depth is 2 in the tensors, 3 in config.json",
        ),
        (ParJson(n_head=2, block_size=16, ar_token_num=16), "group is 4 in the tensors, 16 in"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(
    told: ParJson, message: str, tensors: Tensors
) -> None:
    with pytest.raises(ExportError, match=message):
        load_par(tensors, "here", told)


def test_a_config_json_that_is_none_is_refused(tmp_path: Path) -> None:
    assert read_beside(tmp_path, ParJson) == ParJson()
    (tmp_path / "config.json").write_text(json.dumps({"n_head": "many", "model_type": "c2i"}))
    with pytest.raises(ExportError, match=r"config\.json: cannot be read: .*n_head"):
        read_beside(tmp_path, ParJson)


def test_another_family_is_refused() -> None:
    with pytest.raises(ExportError, match=r"is not a PAR transformer: no cls_embedding"):
        load_par(dict(random_rar().state_dict()), "rar_b.bin")


def test_a_model_without_special_tokens_is_refused(tensors: Tensors) -> None:
    """LlamaGen's own generators have the same keys but for these."""
    state = {k: v for k, v in tensors.items() if k != SPECIAL}
    with pytest.raises(ExportError, match="is not a PAR transformer: no spe_tok_embeddings"):
        load_par(state, "c2i_XL_384.pt", CONFIG_JSON)


def test_another_size_or_group_is_named() -> None:
    entry, other = find_model("par-3b-4x"), find_model("par-3b-16x")
    with pytest.raises(ExportError, match=r"is not par-3b-4x: group is 16, not 4.*a par-3b-16x"):
        check_config(entry, other.config, "here")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"is not par-3b-4x, but of another family"):
        check_config(entry, find_model("rar-b").config, "here")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 1])
def test_a_payload_in_either_file_is_named_and_does_not_run(
    number: int, tmp_path: Path, tensors: Tensors
) -> None:
    parts = [tensors, dict(random_llamagen().state_dict())]
    trap = tmp_path / "ran"
    parts[number] = parts[number] | {"extra": Payload(trap)}  # type: ignore[dict-item]
    folder = write_checkpoint(tmp_path / "checkpoint", *parts)
    paths = resolve_checkpoint(str(folder), find_model("par").files)
    with pytest.raises(ExportError, match=r"its pickle asks for \w") as caught:
        read_all(paths)
    assert FILES[number] in str(caught.value)
    assert not trap.exists()


def test_the_tokenizer_comes_from_its_own_repository(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = find_model("par-xl-4x")
    repos = ("Epiphqny/PAR", "FoundationVision/LlamaGen")
    wanted = [cache_file(empty_cache, r, name) for r, name in zip(repos, FILES, strict=True)]
    assert entry.hub is not None
    assert resolve_checkpoint(entry.hub, entry.files, entry.elsewhere) == wanted


def test_the_eighth_tokenizer_is_taken_where_the_sixteenth_is_not(tmp_path: Path) -> None:
    names = ("PAR-XL-4x.pt", "vq_ds8_c2i.pt")
    for name in names:
        (tmp_path / name).touch()
    entry = find_model("par-xl-4x")
    assert resolve_checkpoint(str(tmp_path), entry.files) == [tmp_path / name for name in names]
    (tmp_path / FILES[1]).touch()
    assert resolve_checkpoint(str(tmp_path), entry.files)[1] == tmp_path / FILES[1]
