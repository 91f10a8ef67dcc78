"""VAR's VQVAE against its formulas in float64, and strict loading of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.families.var_vqvae.config import PATCH_NUMS_512, VarVqvaeConfig
from arvg_trt.families.var_vqvae.model import HITS, VarVqvae, infer_vqvae_config, load_var_vqvae

from .models import TEN, TINY, random_images, random_latent, random_vqvae


def conv(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """32 groups, eps 1e-6, by their definition."""
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(dim=2, keepdim=True)
    normed = centred / (centred.square().mean(dim=2, keepdim=True) + 1e-6).sqrt()
    shape = (1, -1, 1, 1)
    scale, shift = w[f"{name}.weight"].reshape(shape), w[f"{name}.bias"].reshape(shape)
    return normed.reshape(x.shape) * scale + shift


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def residual(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)))
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)))
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.bias" in w else x)


def attention(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One head over all positions, scaled by the width; rows of qkv are q, then k, then v."""
    c = x.shape[1]
    rows = conv(w, f"{name}.qkv", norm(w, f"{name}.norm", x)).flatten(2)
    q, k, v = rows[:, :c], rows[:, c : 2 * c], rows[:, 2 * c :]
    scores = torch.einsum("nci,ncj->nij", q, k) / c**0.5
    weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
    out = torch.einsum("nij,ncj->nci", weights, v).reshape(x.shape)
    return x + conv(w, f"{name}.proj_out", out)


def middle(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = attention(w, f"{name}.attn_1", residual(w, f"{name}.block_1", x))
    return residual(w, f"{name}.block_2", x)


def level(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    block = 0
    while f"{name}.block.{block}.conv1.bias" in w:
        x = residual(w, f"{name}.block.{block}", x)
        if f"{name}.attn.{block}.qkv.bias" in w:
            x = attention(w, f"{name}.attn.{block}", x)
        block += 1
    return x


def encode(w: Mapping[str, Tensor], image: Tensor, levels: int) -> Tensor:
    x = conv(w, "encoder.conv_in", image)
    for i in range(levels):
        x = level(w, f"encoder.down.{i}", x)
        if i < levels - 1:
            name = f"encoder.down.{i}.downsample.conv"
            padded = F.pad(x, (0, 1, 0, 1))  # right and bottom alone
            x = F.conv2d(padded, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)
    x = swish(norm(w, "encoder.norm_out", middle(w, "encoder.mid", x)))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", x))


def decode(w: Mapping[str, Tensor], latent: Tensor, levels: int) -> Tensor:
    x = conv(w, "decoder.conv_in", conv(w, "post_quant_conv", latent))
    x = middle(w, "decoder.mid", x)
    for i in reversed(range(levels)):
        x = level(w, f"decoder.up.{i}", x)
        if i > 0:
            larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(w, f"decoder.up.{i}.upsample.conv", larger)
    return conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)))


THREE = replace(TINY, channels_mult=(1, 1, 2), num_res_blocks=2)


@pytest.mark.parametrize("config", [TINY, TEN, THREE], ids=["two levels", "one", "three"])
def test_latents_and_images_equal_the_formulas_in_float64(config: VarVqvaeConfig) -> None:
    model = random_vqvae(config)
    wide = {k: v.double() for k, v in model.state_dict().items()}
    levels = len(config.channels_mult)
    image, latent = random_images(config), random_latent(config)
    for found, wanted in (
        (model.encode(image), encode(wide, image.double(), levels)),
        (model.decode(latent), decode(wide, latent.double(), levels)),
    ):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-4 * wanted.square().mean().sqrt()


def test_the_published_model_has_the_published_sizes_and_keys() -> None:
    with torch.device("meta"):
        model = VarVqvae(VarVqvaeConfig())
    assert sum(p.numel() for p in model.parameters()) == 108_948_355
    assert sum(p.numel() for p in model.encoder.parameters()) == 44_107_872
    assert sum(p.numel() for p in model.decoder.parameters()) == 64_653_923
    state = model.state_dict()
    assert len(state) == 324
    assert state[HITS].shape == (10, 4096)
    assert state["quantize.embedding.weight"].shape == (4096, 32)
    assert state["quant_conv.weight"].shape == (32, 32, 3, 3)
    assert state["encoder.mid.attn_1.qkv.weight"].shape == (1920, 640, 1, 1)
    attention = {k.split(".attn")[0] for k in state if ".attn" in k}
    assert attention == {"encoder.down.4", "encoder.mid", "decoder.up.4", "decoder.mid"}


@pytest.mark.parametrize("config", [TINY, TEN, THREE, VarVqvaeConfig()])
def test_the_configuration_is_inferred_from_the_keys(config: VarVqvaeConfig) -> None:
    with torch.device("meta"):
        tensors = VarVqvae(config).state_dict()
    assert infer_vqvae_config(tensors, "here", config.patch_nums) == config


def test_the_official_file_serves_both_resolutions() -> None:
    with torch.device("meta"):
        tensors = VarVqvae(VarVqvaeConfig()).state_dict()
    small, large = (infer_vqvae_config(tensors, "here", p) for p in ((1, 16), PATCH_NUMS_512))
    assert (small.image_size, large.image_size) == (256, 512)
    assert sum(large.lengths) == 2240


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_loads_to_the_model_it_came_from(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    model = random_vqvae(TINY)
    path = tmp_path / f"vae.{kind}"
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if kind == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_var_vqvae(read_all([path]), str(path), TINY.patch_nums)
    assert loaded.config == TINY and not loaded.training
    image = random_images(TINY)
    codes = model.quantize.encode(model.encode(image))
    assert torch.equal(loaded.quantize.encode(loaded.encode(image)), codes)
    assert torch.equal(
        loaded.decode(loaded.quantize.decode(codes)), model.decode(model.quantize.decode(codes))
    )


def test_float16_weights_load_to_the_same_values() -> None:
    published = {k: v.half() for k, v in random_vqvae(TINY).state_dict().items()}
    loaded = load_var_vqvae(published, "here", TINY.patch_nums).state_dict()
    assert all(v.dtype == torch.float32 for v in loaded.values())
    assert all(torch.equal(loaded[k], v.float()) for k, v in published.items())


def test_statistics_of_code_use_are_kept() -> None:
    state = random_vqvae(TINY).state_dict()
    state[HITS] = torch.rand(5, 40)
    assert torch.equal(
        load_var_vqvae(state, "here", TINY.patch_nums).state_dict()[HITS], state[HITS]
    )


@pytest.mark.parametrize("rows", [10, None])
def test_statistics_of_other_scales_or_none_begin_anew(rows: int | None) -> None:
    state = random_vqvae(TINY).state_dict()
    del state[HITS]
    if rows:
        state[HITS] = torch.ones(rows, 40)
    found = load_var_vqvae(state, "here", TINY.patch_nums).state_dict()[HITS]
    assert found.shape == (5, 40) and found.abs().max() == 0


def test_statistics_of_another_vocabulary_are_refused() -> None:
    state = random_vqvae(TINY).state_dict()
    state[HITS] = torch.ones(5, 41)
    with pytest.raises(ExportError, match=r"ema_vocab_hit_SV has shape \[5, 41\], not \[5, 40\]"):
        load_var_vqvae(state, "here", TINY.patch_nums)


def test_missing_and_extra_keys_are_named() -> None:
    state = random_vqvae(TINY).state_dict()
    state["decoder.spurious.weight"] = state.pop("decoder.mid.attn_1.qkv.bias")
    with pytest.raises(ExportError) as caught:
        load_var_vqvae(state, "here", TINY.patch_nums)
    assert "missing decoder.mid.attn_1.qkv.bias" in str(caught.value)
    assert "unexpected decoder.spurious.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("encoder.mid.attn_1.qkv.weight", (64, 64, 1, 1), r"qkv\.weight has shape"),
        ("quantize.embedding.weight", (40,), "is not VAR's VQVAE"),
        ("encoder.conv_in.weight", (48, 3, 3, 3), "widths"),
        ("encoder.conv_in.weight", (32, 4, 3, 3), "takes 4 channels"),
        ("encoder.conv_in.weight", (0, 3, 3, 3), "widths"),
        ("quant_conv.weight", (8, 8, 2, 2), "even size"),
        ("quantize.quant_resi.qresi_ls.1.weight", (8, 8, 1, 1), "has shape"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(key: str, shape: tuple[int, ...], says: str) -> None:
    state = random_vqvae(TINY).state_dict()
    state[key] = torch.zeros(shape)
    with pytest.raises(ExportError, match=says):
        load_var_vqvae(state, "here", TINY.patch_nums)


def test_a_checkpoint_of_another_family_is_refused() -> None:
    for tensors in (
        {"blocks.0.attn.mat_qkv.weight": torch.zeros(6, 2)},
        {"encoder.conv_in.weight": torch.zeros(32, 48, 3, 3)},
        {},
    ):
        with pytest.raises(ExportError, match="here: is not VAR's VQVAE"):
            load_var_vqvae(tensors, "here")


def test_weights_that_are_not_plain_floats_are_refused() -> None:
    state = random_vqvae(TINY).state_dict()
    state["quant_conv.bias"] = torch.zeros(8, dtype=torch.int8)
    with pytest.raises(ExportError, match=r"quant_conv\.bias holds int8"):
        load_var_vqvae(state, "here", TINY.patch_nums)
