"""The Cosmos modules against formulas evaluated in float64 numpy, and the published shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arvg_trt.export.tokenizers.blocks import AttnBlock, Downsample
from arvg_trt.export.tokenizers.cosmos import (
    FSQ,
    FSQ_LEVELS,
    CosmosConfig,
    CosmosTokenizer,
    Patcher,
    UnPatcher,
    load_cosmos,
)
from arvg_trt.export.zoo import ZOO, find_model

SMALL = CosmosConfig(channels=32, channels_mult=(1, 1, 1), z_channels=32)
Array = NDArray[np.float64]


def haar_level(x: Array) -> Array:
    """One level on [C, H, W]: bands LL, LH (top - bottom), HL (left - right), HH, all over 4."""
    a, b = x[:, ::2, ::2], x[:, ::2, 1::2]
    c, d = x[:, 1::2, ::2], x[:, 1::2, 1::2]
    bands = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return np.concatenate(bands) / 4


@pytest.mark.parametrize("entry", ZOO, ids=lambda e: e.name)
def test_a_zoo_entry_has_the_parameters_it_says(entry) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        model = CosmosTokenizer(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("cosmos-di8x8", 32_259_712, 46_741_296),
        ("cosmos-di16x16", 34_619_520, 49_101_104),
        ("cosmos-ci8x8", 31_153_552, 45_635_376),
        ("cosmos-ci16x16", 33_513_360, 47_995_184),
    ],
)
def test_encoder_and_decoder_have_the_published_sizes(
    name: str, encoder: int, decoder: int
) -> None:
    with torch.device("meta"):
        model = CosmosTokenizer(find_model(name).config)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


def test_published_models_have_attention_in_the_middle_only() -> None:
    with torch.device("meta"):
        keys = CosmosTokenizer(find_model("cosmos-di16x16").config).state_dict()
    assert {k.split(".attn")[0] for k in keys if ".attn" in k} == {"encoder.mid", "decoder.mid"}


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), h=st.integers(1, 5), w=st.integers(1, 5))
def test_patcher_is_two_haar_levels_band_major(seed: int, h: int, w: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 4 * h, 4 * w))
    found = Patcher(4)(torch.from_numpy(x[None]).float()).numpy()[0]
    np.testing.assert_allclose(found, haar_level(haar_level(x)), atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), patch=st.sampled_from([2, 4]))
def test_unpatcher_inverts_the_patcher(seed: int, patch: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, 8, 12))).float()
    torch.testing.assert_close(UnPatcher(patch)(Patcher(patch)(x)), x, atol=5e-6, rtol=0)


def test_detail_bands_of_a_photograph_are_far_narrower_than_the_low_band() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    x = skimage_data.astronaut().transpose(2, 0, 1) / 127.5 - 1
    rms = Patcher(4)(torch.from_numpy(x[None]).float()).square().mean(dim=(0, 2, 3)).sqrt()
    assert rms[:3].min() > 5 * rms[3:].max()


def test_a_constant_image_has_its_value_in_the_low_band_alone() -> None:
    bands = Patcher(4)(torch.full((1, 3, 8, 8), 0.25))
    torch.testing.assert_close(bands[:, :3], torch.full((1, 3, 2, 2), 0.25))
    assert bands[:, 3:].abs().max() == 0


def fsq_oracle(latent: Array) -> tuple[NDArray[np.int64], Array]:
    """Indices and codes of [d] latents by the paper's formula, eps 1e-3."""
    index, basis, codes = 0, 1, []
    for z, level in zip(latent, FSQ_LEVELS, strict=True):
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        q = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
        codes.append(q / (level // 2))
        index += int(q + level // 2) * basis
        basis *= level
    return np.int64(index), np.array(codes)


def test_fsq_equals_the_formula() -> None:
    latents = np.random.default_rng(0).normal(0, 1.5, (200, 6))
    fsq = FSQ(FSQ_LEVELS)
    indices = fsq.indices(torch.from_numpy(latents).float()[:, :, None, None])
    codes = fsq.codes(indices)
    for row, index, code in zip(latents, indices, codes, strict=True):
        wanted_index, wanted_code = fsq_oracle(row)
        assert int(index) == wanted_index
        np.testing.assert_array_equal(code.flatten().numpy(), wanted_code.astype(np.float32))


def test_fsq_thresholds_are_the_published_ones() -> None:
    fsq = FSQ(FSQ_LEVELS)
    for channel, threshold in ((0, -0.14370), (0, 1.13556), (3, 0.25515), (3, -0.97124)):
        digits = []
        for side in (-1e-4, 1e-4):
            z = torch.zeros(1, 6, 1, 1)
            z[0, channel] = threshold + side
            digits.append(int(torch.round(fsq.bound(z))[0, channel]))
        assert digits[1] == digits[0] + 1


def test_every_index_survives_decoding_and_encoding() -> None:
    fsq = FSQ(FSQ_LEVELS)
    every = torch.arange(64000, dtype=torch.int32).reshape(1, 250, 256)
    codes = fsq.codes(every)
    digits = (codes * fsq.half_width + fsq.half_width).int()
    assert torch.equal((digits * fsq.basis).sum(dim=1, dtype=torch.int32), every)
    assert codes.min() == -1 and codes.max() == 1
    for kind in (torch.float16, torch.bfloat16):
        assert torch.equal(codes.to(kind).float(), codes)


def test_a_sum_over_the_basis_would_not_survive_half_precision() -> None:
    fsq = FSQ(FSQ_LEVELS)
    every = torch.arange(64000, dtype=torch.int32).reshape(1, 250, 256)
    digits = fsq.codes(every) * fsq.half_width + fsq.half_width
    half = (digits.half() * fsq.basis.half()).sum(dim=1)
    assert (half.float() != every.float()).float().mean() > 0.5
    # The module's own arithmetic is integer, so a half-precision latent only moves its own ties.
    latent = torch.randn(4, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    indices = fsq.indices(latent.half().float())
    assert (indices == fsq.indices(latent)).float().mean() > 0.99
    assert int(indices.max()) < 64000 and int(indices.min()) >= 0


@pytest.mark.parametrize(("h", "w"), [(2, 1), (3, 5), (64, 96)])
def test_attention_equals_softmax_in_float64(h: int, w: int) -> None:
    torch.manual_seed(0)
    block = AttnBlock(32).requires_grad_(False)
    x = torch.randn(1, 32, h, w)
    weights = {k: v.double().numpy() for k, v in block.state_dict().items()}
    xn = block.norm(x)[0].double().numpy().reshape(32, -1)
    q, k, v = (
        weights[f"{n}.weight"][:, :, 0, 0] @ xn + weights[f"{n}.bias"][:, None] for n in "qkv"
    )
    scores = q.T @ k / np.sqrt(32)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    out = v @ (scores / scores.sum(axis=1, keepdims=True)).T
    out = weights["proj_out.weight"][:, :, 0, 0] @ out + weights["proj_out.bias"][:, None]
    wanted = x[0].double().numpy() + out.reshape(32, h, w)
    np.testing.assert_allclose(block(x)[0].numpy(), wanted, atol=1e-5)


def test_downsample_pads_right_and_bottom_only() -> None:
    down = Downsample(1).requires_grad_(False)
    down.conv.weight.fill_(0)
    down.conv.weight[0, 0, 0, 0] = 1
    down.conv.bias.zero_()  # type: ignore[union-attr]
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(down(x), x[:, :, ::2, ::2])


def test_the_model_in_float32_equals_itself_in_float64() -> None:
    torch.manual_seed(0)
    model = CosmosTokenizer(SMALL).eval().requires_grad_(False)
    x = torch.rand(1, 3, 32, 48) * 2 - 1
    latent = model.encode(x)
    codes = FSQ(FSQ_LEVELS).codes(FSQ(FSQ_LEVELS).indices(latent))
    image = model.decode(codes)
    wide = model.double()
    for found, wanted in ((latent, wide.encode(x.double())), (image, wide.decode(codes.double()))):
        error = (found.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert error < 1e-4


def test_bfloat16_weights_load_to_the_same_values() -> None:
    published = {k: v.bfloat16() for k, v in CosmosTokenizer(SMALL).state_dict().items()}
    loaded = load_cosmos(published, "here").state_dict()
    assert all(v.dtype == torch.float32 for v in loaded.values())
    assert all(torch.equal(loaded[k], v.float()) for k, v in published.items())
