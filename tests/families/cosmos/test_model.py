"""The Cosmos modules against formulas evaluated in float64 numpy, and the published shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arvg_trt.errors import ExportError
from arvg_trt.families.cosmos.checkpoint import infer_config, load_cosmos
from arvg_trt.families.cosmos.config import FSQ_LEVELS, CosmosConfig, CosmosJson
from arvg_trt.families.cosmos.model import FSQ, CosmosTokenizer, Patcher, UnPatcher
from arvg_trt.families.cosmos.variants import VARIANTS
from arvg_trt.families.shared.convolution import AttnBlock, Downsample
from arvg_trt.families.variants import find_model

SMALL = CosmosConfig(channels=32, channels_mult=(1, 1, 1), z_channels=32)
SMALL_CI = CosmosConfig(
    channels=32, channels_mult=(1, 1, 1), z_channels=16, latent_channels=16, levels=()
)
Array = NDArray[np.float64]


def haar_level(x: Array) -> Array:
    """One level on [C, H, W]: bands LL, LH (top - bottom), HL (left - right), HH, all over 4."""
    a, b = x[:, ::2, ::2], x[:, ::2, 1::2]
    c, d = x[:, 1::2, ::2], x[:, 1::2, 1::2]
    bands = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return np.concatenate(bands) / 4


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says(entry) -> None:  # type: ignore[no-untyped-def]
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


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("cosmos-di8x8", 93, 115),
        ("cosmos-di16x16", 95, 117),
        ("cosmos-ci8x8", 90, 112),
        ("cosmos-ci16x16", 92, 114),
    ],
)
def test_the_archives_keys_are_ours_and_the_buffers(name: str, encoder: int, decoder: int) -> None:
    with torch.device("meta"):
        model = CosmosTokenizer(find_model(name).config)
    keys = model.state_dict().keys()
    # Each archive adds the Haar pair of buffers and, for DI, the quantizer's three.
    buffers = 5 if model.config.discrete else 2
    of_encoder = [k for k in keys if k.startswith(("encoder.", "quant_conv."))]
    assert len(of_encoder) + buffers == encoder
    assert len(keys) - len(of_encoder) + buffers == decoder


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


@pytest.mark.parametrize(
    ("channel", "thresholds"),
    [
        (0, (-1.42295, -0.79249, -0.43728, -0.14370, 0.14989, 0.50510, 1.13556)),
        (3, (-0.97124, -0.25515, 0.25515, 0.97124)),
    ],
)
def test_fsq_thresholds_are_the_published_ones(channel: int, thresholds: tuple[float, ...]) -> None:
    fsq = FSQ(FSQ_LEVELS)
    for number, threshold in enumerate(thresholds):
        z = torch.zeros(2, 6, 1, 1)
        z[:, channel, 0, 0] = torch.tensor([threshold - 1e-4, threshold + 1e-4])
        below, above = (fsq.codes(fsq.indices(z)) * fsq.half_width)[:, channel].flatten()
        lowest = -(FSQ_LEVELS[channel] // 2)
        assert (int(below), int(above)) == (lowest + number, lowest + number + 1)


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


@pytest.mark.parametrize(("h", "w"), [(4, 4), (6, 10), (5, 7)])
def test_downsample_pads_right_and_bottom_only(h: int, w: int) -> None:
    torch.manual_seed(0)
    down = Downsample(3).requires_grad_(False)
    x = torch.randn(1, 3, h, w)
    weight, bias = (p.double().numpy() for p in down.conv.parameters())
    padded = np.zeros((3, h + 1, w + 1))
    padded[:, :h, :w] = x[0].double().numpy()
    wanted = np.zeros((3, (h - 2) // 2 + 1, (w - 2) // 2 + 1))
    for row, column in np.ndindex(wanted.shape[1:]):
        window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        wanted[:, row, column] = (weight * window).sum(axis=(1, 2, 3)) + bias
    np.testing.assert_allclose(down(x)[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_indices_of_a_half_precision_latent_are_those_of_its_values(kind: torch.dtype) -> None:
    fsq = FSQ(FSQ_LEVELS)
    generator = torch.Generator().manual_seed(0)
    latent = (2 * torch.randn(2, 6, 32, 32, generator=generator)).to(kind)
    indices = fsq.indices(latent)
    assert indices.dtype == torch.int32
    assert torch.equal(indices, fsq.indices(latent.float()))


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
    loaded = load_cosmos(published, "here", known=SMALL).state_dict()
    assert all(v.dtype == torch.float32 for v in loaded.values())
    assert all(torch.equal(loaded[k], v.float()) for k, v in published.items())


@pytest.mark.parametrize("config", [SMALL, SMALL_CI, *(e.config for e in VARIANTS)])
def test_the_configuration_is_inferred_from_the_keys(config: CosmosConfig) -> None:
    with torch.device("meta"):
        tensors = CosmosTokenizer(config).state_dict()
    assert infer_config(tensors, "here", known=config) == config


def test_levels_that_nothing_tells_are_not_guessed() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    with pytest.raises(ExportError, match="6 latent channels, and neither a buffer nor a") as e:
        load_cosmos(state, "here")
    assert "levels" in str(e.value.do)
    levels = (8, 8, 5, 5, 4, 4)
    assert load_cosmos(state, "here", CosmosJson(levels=levels)).config.levels == levels
    buffer = {"quantizer._levels": torch.tensor(levels)}
    assert infer_config(state | buffer, "here").levels == levels


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (CosmosJson(levels=FSQ_LEVELS, channels=128), "channels is 32 in the tensors, 128 in"),
        (CosmosJson(levels=FSQ_LEVELS, patch_method="rearrange"), "patch_method 'rearrange'"),
        (CosmosJson(levels=(8, 8)), "2 FSQ levels for 6 latent channels"),
        (CosmosJson(levels=(1, 8, 8, 8, 8, 8)), "has FSQ levels"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(told: CosmosJson, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_cosmos(CosmosTokenizer(SMALL).state_dict(), "here", told)


def test_missing_and_extra_keys_are_named() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["decoder.spurious.weight"] = state.pop("decoder.mid.attn_1.k.bias")
    with pytest.raises(ExportError) as caught:
        load_cosmos(state, "here", known=SMALL)
    assert "missing decoder.mid.attn_1.k.bias" in str(caught.value)
    assert "unexpected decoder.spurious.weight" in str(caught.value)


def test_a_tensor_of_another_shape_is_named() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["decoder.mid.attn_1.q.weight"] = torch.zeros(3, 3, 1, 1)
    with pytest.raises(ExportError, match=r"decoder\.mid\.attn_1\.q\.weight has shape"):
        load_cosmos(state, "here", known=SMALL)


def test_a_checkpoint_of_another_family_is_refused() -> None:
    with pytest.raises(ExportError, match="is not a Cosmos image tokenizer"):
        infer_config({"quantize.embedding.weight": torch.zeros(4, 4)}, "here")


def test_attention_outside_the_middle_is_refused() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["encoder.down.0.attn.0.q.weight"] = torch.zeros(1)
    with pytest.raises(ExportError, match=r"encoder\.down\.0\.attn"):
        infer_config(state, "here")


CODEBOOK = FSQ(FSQ_LEVELS).codes(torch.arange(64000).int().reshape(1, -1, 1))[0, :, :, 0].T


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder.patcher.wavelets", torch.tensor([1.0, 1.0])),
        ("decoder.unpatcher._arange", torch.tensor([0, 2])),
        ("quantizer._basis", torch.tensor([1, 8, 64, 512, 2560, 12801])),
        ("quantizer._levels", torch.tensor([1, 8, 8, 5, 5, 5])),
        ("inv_quant.quantizer._levels", torch.tensor([8, 8, 8])),
        ("quantizer.implicit_codebook", CODEBOOK.flip(0)),
        ("quantizer.implicit_codebook", CODEBOOK[:5]),
    ],
)
def test_odd_buffers_are_refused(name: str, value: torch.Tensor) -> None:
    state = {**CosmosTokenizer(SMALL).state_dict(), name: value}
    with pytest.raises(ExportError, match=r"^here: .*(is not what|FSQ levels)"):
        load_cosmos(state, "here", known=SMALL)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_official_buffers_are_accepted_and_dropped(kind: torch.dtype) -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    buffers = {
        "encoder.patcher.wavelets": torch.full((2,), 0.5**0.5, dtype=kind),
        "decoder.unpatcher._arange": torch.arange(2),
        "quantizer._levels": torch.tensor([8, 8, 8, 5, 5, 5], dtype=torch.int32),
        "inv_quant.quantizer._basis": torch.tensor([1, 8, 64, 512, 2560, 12800]),
        "inv_quant.quantizer.implicit_codebook": CODEBOOK.to(kind),
    }
    assert (
        load_cosmos({**state, **buffers}, "here", known=SMALL).state_dict().keys() == state.keys()
    )


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("encoder.conv_in.weight", (3,), "no convolution"),
        ("quant_conv.weight", (), "no convolution"),
        ("encoder.conv_in.weight", (0, 48, 3, 3), "widths"),
        ("encoder.conv_in.weight", (48, 48, 3, 3), "widths"),
        ("encoder.down.1.block.0.conv2.weight", (40, 32, 3, 3), "widths"),
        ("encoder.conv_in.weight", (32, 27, 3, 3), "27 channels"),
        ("encoder.conv_in.weight", (32, 50, 3, 3), "50 channels"),
    ],
)
def test_shapes_that_no_configuration_has_are_refused(
    key: str, shape: tuple[int, ...], says: str
) -> None:
    with torch.device("meta"):
        state = {**CosmosTokenizer(SMALL).state_dict(), key: torch.empty(shape)}
    with pytest.raises(ExportError, match=says):
        load_cosmos(state, "here", known=SMALL)


def test_a_level_without_its_convolution_is_named() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    del state["encoder.down.1.block.0.conv2.weight"]
    with pytest.raises(ExportError, match=r"encoder\.down\.1\.block\.0\.conv2\.weight"):
        load_cosmos(state, "here", known=SMALL)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_not_plain_floats_are_refused(kind: torch.dtype) -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["quant_conv.bias"] = torch.zeros(6).to(kind)
    with pytest.raises(ExportError, match=r"quant_conv\.bias holds"):
        load_cosmos(state, "here", known=SMALL)
