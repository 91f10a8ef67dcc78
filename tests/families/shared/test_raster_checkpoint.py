"""Checkpoints of PAR, LlamaGen and RAR: how they load, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.llamagen.checkpoint import infer_llamagen_config
from arvg_trt.families.par.checkpoint import infer_par_config
from arvg_trt.families.par.config import ParJson
from arvg_trt.families.shared.llama.config import LlamaJson
from arvg_trt.families.variants import check_config, find_model

from ..par.models import WIDE
from ..rar.models import random_rar
from ..var.models import SMALL as SMALL_VAR
from ..var.models import random_var
from .models import Payload, Tensors, cache_file, job, put, state_of, without
from .token_families import LLAMAGEN, PAR, TokenFamily

LLAMAS = pytest.mark.parametrize("family", ["par", "llamagen"], indirect=True)
INFER: dict[str, Callable[..., Any]] = {"par": infer_par_config, "llamagen": infer_llamagen_config}
JSON = {"par": ParJson, "llamagen": LlamaJson}


@pytest.mark.parametrize("kind", ["model", "module", "state_dict", "bare", "safetensors", "half"])
def test_every_file_form_loads_the_same_models(
    family: TokenFamily, kind: str, tmp_path: Path
) -> None:
    """DDP, DeepSpeed and FSDP wrap differently; a trainer's optimizer beside them is not read.

    The angles that a file of a LlamaGen may have are computed here.
    """
    tensors, tokenizer = family.transformer_state(), family.tokenizer(48)
    stored = {k: v.bfloat16() for k, v in tensors.items()} if kind == "half" else tensors
    own = dict(stored)
    if family.name == "llamagen":
        own["freqs_cis"] = torch.zeros(family.config.length, family.config.head_dim // 2, 2)
    checkpoint = family.write_checkpoint(tmp_path / "checkpoint", None, None)
    if kind == "safetensors":
        for name, part in zip(family.files, (own, tokenizer), strict=True):
            save_file(part, (checkpoint / name).with_suffix(".safetensors"))
    else:
        key = "model" if kind == "half" else kind
        extra = {"optimizer": {"state": {}}, "steps": 3}
        torch.save(own if kind == "bare" else {key: own, **extra}, checkpoint / family.files[0])
        whole = {"model": tokenizer, "ema": tokenizer, "steps": 3}
        torch.save(tokenizer if family.name == "rar" else whole, checkpoint / family.files[1])
    model, found = family.exporter.load(job(family.name, checkpoint))
    assert model.config == family.config and found.config.vocab_size == 48
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(v, stored[k].float()) for k, v in model.state_dict().items())
    assert all(torch.equal(v, tokenizer[k]) for k, v in found.state_dict().items())


def test_float32_weights_stay_where_the_file_is_mapped(tmp_path: Path) -> None:
    torch.save({"model": PAR.transformer_state()}, tmp_path / PAR.files[0])
    read = read_all([tmp_path / PAR.files[0]])
    found = PAR.load(read, "here").state_dict()
    assert all(v.data_ptr() == read[k].data_ptr() for k, v in found.items())


QKV = "layers.1.attention.wqkv.weight"
SPECIAL = "spe_tok_embeddings.special_embeddings.weight"
CLASSES = "cls_embedding.embedding_table.weight"
LLAMA = [
    (without(QKV), f"missing {QKV}"),
    (without("norm.weight"), "missing norm.weight"),
    (put("layers.1.attention.wqkv.bias", 96), r"unexpected layers\.1\.attention\.wqkv\.bias"),
    (put(QKV, 64, 32), rf"{QKV} has shape \[64, 32\], not \[96, 32\]"),
    (put("output.weight", 47, 32), r"output\.weight has shape \[47, 32\], not \[48, 32\]"),
    (put(CLASSES, 1, 32), "num_classes 0: too small"),
]
OF_RAR = "blocks.1.attn.qkv.weight"
NORM = "blocks.0.attn.q_norm.weight"
UNFIT = {
    "par": [
        *LLAMA,
        # LlamaGen's own generators have the same keys but for these.
        (without(SPECIAL), rf"is not a PAR transformer: no {SPECIAL}"),
        (put(SPECIAL, 4, 32), "predicts 5 tokens at once, not one of each of 2x2"),
        (put(SPECIAL, 15, 32), "predicts 16 tokens at once, .* of several cells of a map of 4x4"),
        (put(SPECIAL, 0, 32), "predicts 1 tokens at once"),
    ],
    "llamagen": [
        *LLAMA,
        (without(CLASSES), "is not a class-conditional LlamaGen transformer: no cls_embedding"),
        # A PAR has the same keys and its special tokens.
        (put(SPECIAL, 3, 32), r"but a PAR: it has spe_tok_embeddings \(export it as"),
    ],
    "rar": [
        (without(OF_RAR), f"missing {OF_RAR}"),
        (without("cls_token"), "missing cls_token"),
        (without("lm_head.weight"), r"is not a RAR transformer: no lm_head\.weight"),
        (put("blocks.1.attn.extra", 1), "unexpected blocks.1.attn.extra"),
        (put(OF_RAR, 95, 32), rf"{OF_RAR} has shape \[95, 32\], not \[96, 32\]"),
        (put("pos_embed", 1, 1280, 32), r"pos_embed has shape \[1, 1280, 32\], not \[1, 1040, 32"),
        (put("timesteps_embeddings", 1, 117, 32), "images of 17 tokens, not a square"),
        (put("timesteps_embeddings", 1, 100, 32), "has length 0 below 1"),
        (put("embeddings.weight", 50, 32), "has num_classes 0 below 1"),
        (put(NORM, 7), "width 32, not a multiple of heads of 7"),
        (put(NORM, 0), "width 32, not a multiple of heads of 0"),
    ],
}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [(name, *row) for name, rows in UNFIT.items() for row in rows],
    indirect=["family"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    family: TokenFamily, change: Callable[[Tensors], None], message: str
) -> None:
    state = family.transformer_state()
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        family.load(state, family.files[0])
    assert str(caught.value).startswith(f"{family.files[0]}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "model", "message"),
    [
        ("par", lambda: random_rar(), r"is not a PAR transformer: no cls_embedding"),
        ("llamagen", PAR.random_transformer, r"but a PAR: it has spe_tok_embeddings"),
        ("rar", lambda: random_var(SMALL_VAR), r"is not a RAR transformer: no embeddings\.weight"),
    ],
    indirect=["family"],
    ids=["par", "llamagen", "rar"],
)
def test_another_family_is_refused(
    family: TokenFamily, model: Callable[[], torch.nn.Module], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        family.load(state_of(model()), "here")


@pytest.mark.parametrize(
    ("entry", "other", "message"),
    [
        ("par-3b-4x", "par-3b-16x", r"is not par-3b-4x: group is 16, not 4.*a par-3b-16x"),
        ("par-3b-4x", "rar-b", r"is not par-3b-4x, but of another family"),
        ("rar-b", "rar-l", r"is not rar-b: width is 1024, not 768.*it is a rar-l"),
        ("rar-b", "var-d16", r"is not rar-b, but of another family"),
        ("var-d16", "var-d20", r"is not var-d16: depth is 20.*it is a var-d20"),
        ("var-d16", "cosmos-di8x8", r"is not var-d16, but of another family"),
    ],
)
def test_another_size_is_named(entry: str, other: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_config(find_model(entry), find_model(other).config, "here")  # type: ignore[arg-type]


@LLAMAS
@pytest.mark.parametrize(
    ("told", "key"),
    [({}, "n_head"), ({"n_head": 2}, "block_size"), ({"block_size": 16}, "n_head")],
)
def test_what_no_shape_tells_is_not_guessed(
    family: TokenFamily, told: dict[str, int], key: str
) -> None:
    said = JSON[family.name](**told)
    with pytest.raises(ExportError, match=f"no official size, and no config.json says {key}"):
        INFER[family.name](family.transformer_state(), "here", said)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["par", "par 16x", "llamagen"])
def test_config_json_tells_what_shapes_do_not(number: int) -> None:
    family = (PAR, PAR, LLAMAGEN)[number]
    config = (PAR.config, WIDE, LLAMAGEN.config)[number]
    told = {"n_head": config.heads, "block_size": config.length}
    said, infer = JSON[family.name], INFER[family.name]
    assert infer(state_of(family.random_transformer(config)), "here", said(**told)) == config
    odd = replace(config, norm_eps=1e-3, rope_base=500.0)
    told |= {"norm_eps": 1e-3, "rope_base": 500, "n_layer": 2}
    assert infer(state_of(family.random_transformer(odd)), "here", said(**told)) == odd


SIZES = {"n_head": 2, "block_size": 16}


@pytest.mark.parametrize(
    ("family", "told", "message"),
    [
        ("par", {"n_head": 3}, "width 32, not a multiple of 4 in each of 3 heads"),
        ("par", {"block_size": 10**12}, "images of 1000000000000 tokens, over"),
        ("par", {"block_size": 15}, "images of 15 tokens, not a square"),
        ("par", {"block_size": 25}, "predicts 4 tokens at once"),
        ("par", {"block_size": -4}, "length -4: too small"),
        ("par", {"norm_eps": 0.0}, r"norm_eps 0.0: too small"),
        (
            "par",
            {"n_layer": 3, "ar_token_num": 16},
            "depth is 2 in the tensors, 3 in config.json",
        ),
        ("par", {"ar_token_num": 16}, "group is 4 in the tensors, 16 in"),
        ("llamagen", {"n_head": 3}, "width 32, not a multiple of 4 in each of 3 heads"),
        ("llamagen", {"block_size": 15}, "images of 15 tokens, not a square"),
        ("llamagen", {"block_size": 0}, "length 0: too small"),
        ("llamagen", {"n_layer": 3}, "depth is 2 in the tensors, 3 in config"),
    ],
    indirect=["family"],
)
def test_a_config_json_that_does_not_fit_is_refused(
    family: TokenFamily, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        INFER[family.name](family.transformer_state(), "here", JSON[family.name](**SIZES | told))


@pytest.mark.parametrize("number", [0, 1])
def test_a_payload_in_either_file_is_named_and_does_not_run(
    family: TokenFamily, number: int, tmp_path: Path
) -> None:
    parts: list[Any] = [family.transformer_state(), family.tokenizer(48)]
    trap = tmp_path / "ran"
    parts[number]["extra"] = Payload(trap)
    checkpoint = family.write_checkpoint(tmp_path / "checkpoint", *parts)
    with pytest.raises(ExportError, match=r"its pickle asks for \w") as caught:
        family.exporter.load(job(family.name, checkpoint))
    assert family.files[number] in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("family", "model", "repositories"),
    [
        ("par", "par-xl-4x", ("Epiphqny/PAR", "FoundationVision/LlamaGen")),
        ("llamagen", "llamagen-b-256", ("FoundationVision/LlamaGen",) * 2),
        ("rar", "rar-b", ("yucornetto/RAR", "fun-research/TiTok")),
    ],
    indirect=["family"],
)
def test_each_file_comes_from_its_own_repository(
    family: TokenFamily,
    model: str,
    repositories: tuple[str, str],
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = find_model(model)
    assert entry.hub == repositories[0]
    pairs = zip(repositories, family.files, strict=True)
    wanted = [cache_file(empty_cache, repository, name) for repository, name in pairs]
    assert resolve_checkpoint(entry.hub, entry.files, entry.elsewhere) == wanted
