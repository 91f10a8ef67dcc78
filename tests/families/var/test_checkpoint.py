"""VAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.export.checkpoint.strict import split_parts
from arvg_trt.families.base import Variant
from arvg_trt.families.var.checkpoint import INFINITE, infer_config, load_var
from arvg_trt.families.var.config import VarConfig, VarJson, read_config_json
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var.variants import VARIANTS
from arvg_trt.families.variants import check_config, find_model

from .models import FORMS, PLAIN, SHARED, SMALL, random_var

Tensors = dict[str, Tensor]
VAE = {"quantize.embedding.weight": torch.ones(4, 2), "encoder.conv_in.bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return dict(random_var(SMALL).state_dict())


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says(entry: Variant) -> None:
    assert isinstance(entry.config, VarConfig)
    with torch.device("meta"):
        model = VarTransformer(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters


def test_the_keys_are_the_official_ones() -> None:
    block = {
        "attn.mat_qkv.weight", "attn.q_bias", "attn.v_bias", "attn.zero_k_bias",
        "attn.scale_mul_1H11", "attn.proj.weight", "attn.proj.bias", "ffn.fc1.weight",
        "ffn.fc1.bias", "ffn.fc2.weight", "ffn.fc2.bias",
    }  # fmt: skip
    outside = {
        "pos_start", "pos_1LC", "word_embed.weight", "word_embed.bias", "class_emb.weight",
        "lvl_embed.weight", "lvl_1L", "attn_bias_for_masking", "head_nm.ada_lin.1.weight",
        "head_nm.ada_lin.1.bias", "head.weight", "head.bias",
    }  # fmt: skip
    own = {f"blocks.{i}.{k}" for i in range(2) for k in block}
    adaln = {f"blocks.{i}.ada_lin.1.{k}" for i in range(2) for k in ("weight", "bias")}
    assert VarTransformer(SMALL).state_dict().keys() == outside | own | adaln
    shared = {"blocks.0.ada_gss", "blocks.1.ada_gss"}
    shared |= {"shared_ada_lin.1.weight", "shared_ada_lin.1.bias"}
    assert VarTransformer(SHARED).state_dict().keys() == outside | own | shared


@pytest.mark.parametrize("config", FORMS, ids=["adaln", "shared adaln", "no l2 norm"])
def test_the_configuration_is_inferred_from_the_shapes(config: VarConfig) -> None:
    told = VarJson(num_heads=config.heads)
    assert infer_config(VarTransformer(config).state_dict(), "here", told) == config


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.name)
def test_the_configuration_of_a_published_size_is_inferred(entry: Variant) -> None:
    assert isinstance(entry.config, VarConfig)
    with torch.device("meta"):
        state = VarTransformer(entry.config).state_dict()
    levels = [torch.full((p * p,), k) for k, p in enumerate(entry.config.patch_nums)]
    state["lvl_1L"] = torch.cat(levels)[None]
    found = infer_config(state, "here")
    assert found == entry.config
    check_config(entry, found, "here")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "snapshot", "wrapped"])
def test_every_file_form_loads_the_same_model(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    if kind == "snapshot":
        optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
        trainer = {"config": {"patch_nums": (1, 2)}, "var_wo_ddp": tensors, "vae_local": VAE}
        everything = {"epoch": 3, "trainer": trainer | {"var_opt": optimizer}, "args": {"depth": 2}}
        torch.save(everything, tmp_path / "ar-ckpt-last.pth")
    elif kind == "safetensors":
        save_file(tensors, tmp_path / "var_d16.safetensors")
        save_file(VAE, tmp_path / "vae_ch160v4096z32.safetensors")
    else:
        torch.save({"model": tensors} if kind == "wrapped" else tensors, tmp_path / "var_d16.pth")
        torch.save(VAE, tmp_path / "vae_ch160v4096z32.pth")
    paths = resolve_checkpoint(str(tmp_path), find_model("var").files)
    transformer, vae = split_parts(read_all(paths, INFINITE))
    assert vae.keys() == VAE.keys()
    found = load_var(transformer, str(tmp_path)).state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_tensors_of_a_mapped_file_are_not_copied(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors, tmp_path / "var_d16.pth")
    read = read_all([tmp_path / "var_d16.pth"], INFINITE)
    state = load_var(read, "here").state_dict()
    assert all(state[name].data_ptr() == read[name].data_ptr() for name in read)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, tensors: Tensors) -> None:
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    state = load_var(stored, "here").state_dict()
    assert all(torch.equal(state[k], v.float()) for k, v in stored.items() if k != "lvl_1L")


def without(name: str) -> Callable[[Tensors], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, value: Tensor) -> Callable[[Tensors], None]:
    return lambda state: state.update({name: value})


QKV = "blocks.1.attn.mat_qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QKV), f"missing {QKV}"),
        (without("attn_bias_for_masking"), "missing attn_bias_for_masking"),
        (without("lvl_1L"), "is not a VAR transformer: no lvl_1L"),
        (without("blocks.0.attn.scale_mul_1H11"), "missing blocks.0.attn.scale_mul_1H11"),
        (put("blocks.1.attn.extra", torch.zeros(1)), "unexpected blocks.1.attn.extra"),
        (put(QKV, torch.zeros(95, 32)), rf"{QKV} has shape \[95, 32\], not \[96, 32\]"),
        (put(QKV, torch.zeros(96, 32, dtype=torch.int8)), f"{QKV} holds int8, not floats"),
        (put("lvl_1L", torch.tensor([[0, 1, 1]])), r"\[1, 2\] tokens a scale in lvl_1L"),
        (put("lvl_1L", torch.tensor([[1, 0, 0, 0, 0]])), "not squares of scales in order"),
        (put("blocks.0.attn.zero_k_bias", torch.ones(32)), "blocks.0.attn.zero_k_bias is not what"),
        (put("attn_bias_for_masking", torch.zeros(1, 1, 30, 30)), "attn_bias_for_masking is not"),
        (put("class_emb.weight", torch.zeros(1, 32)), "num_classes 0 below 1"),
        (put("blocks.0.attn.scale_mul_1H11", torch.zeros(1, 5, 1, 1)), "not a multiple of 5 heads"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[Tensors], None], message: str, tensors: Tensors
) -> None:
    state = dict(tensors)
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_var(state, "var_d16.pth")
    assert str(caught.value).startswith("var_d16.pth: ")
    assert "\n" not in str(caught.value)


def test_another_family_is_refused() -> None:
    state = {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ExportError, match=r"is not a VAR transformer: no class_emb\.weight"):
        load_var(state, "cosmos.pt")


def test_nan_is_refused_although_the_mask_is_infinite(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors | {QKV: torch.full((96, 32), torch.nan)}, tmp_path / "var.pth")
    with pytest.raises(ExportError, match=f"NaN or infinity in {QKV}"):
        read_all([tmp_path / "var.pth"], INFINITE)


def test_config_json_tells_what_shapes_do_not(tmp_path: Path) -> None:
    state = VarTransformer(PLAIN).state_dict()
    kwargs = {"num_heads": 4, "norm_eps": 1e-5, "drop_rate": 0.1, "vae_kwargs": {"ch": 160}}
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(kwargs))
    found = infer_config(state, "here", read_config_json(tmp_path))
    assert found == replace(PLAIN, norm_eps=1e-5)
    assert read_config_json(tmp_path / "elsewhere") == VarJson()


def test_heads_without_a_learned_scale_are_not_guessed() -> None:
    with pytest.raises(ExportError, match=r"no official size, and no config.json says num_heads"):
        infer_config(VarTransformer(PLAIN).state_dict(), "here")
    official = replace(PLAIN, depth=1, width=64, heads=1, hidden=0)
    assert infer_config(VarTransformer(official).state_dict(), "here").heads == 1


def test_a_config_json_that_contradicts_the_tensors_is_refused(tensors: Tensors) -> None:
    told = VarJson(patch_nums=(1, 2, 3), num_heads=4)
    with pytest.raises(ExportError, match=r"patch_nums is \(1, 2, 3, 4\) in the tensors, \(1, 2,"):
        infer_config(tensors, "here", told)


def test_a_config_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"patch_nums": "many"}')
    with pytest.raises(ExportError, match=r"config\.json: cannot be read: .*patch_nums"):
        read_config_json(tmp_path)
