"""The multi-scale quantizer agrees with its formulas in float64, also in its special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arvg_trt.errors import ExportError
from arvg_trt.families.shared.vq import nearest_code
from arvg_trt.families.var_vqvae.config import (
    PATCH_NUMS_256,
    PATCH_NUMS_512,
    VarVqvaeConfig,
    nearest_tick,
)
from arvg_trt.families.var_vqvae.quantizer import MultiScaleQuantizer, Phi

from .models import TEN, TINY, random_latent, random_quantizer

Array = NDArray[np.float64]


def resized(x: Array, side: int, mode: str) -> Array:
    """PyTorch's own resize, in float64."""
    return F.interpolate(torch.from_numpy(x), size=(side, side), mode=mode).numpy()


def phi(x: Array, weight: Array, bias: Array) -> Array:
    """x/2 + (x * weight + bias)/2 on [N, C, H, W], the correlation as nine shifted products."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    side = x.shape[-1]
    out = np.zeros_like(x) + bias[:, None, None]
    for dy, dx in np.ndindex(3, 3):
        window = padded[:, :, dy : dy + side, dx : dx + side]
        out += np.einsum("oc,nchw->nohw", weight[:, :, dy, dx], window)
    return x / 2 + out / 2


def formulas(
    quantizer: MultiScaleQuantizer, latent: Array
) -> tuple[list[NDArray[np.int64]], list[Array], list[Array]]:
    """Codes of every scale, the sum after every scale, the averages shown at the next one."""
    config = quantizer.config
    wide = {k: v.double().numpy() for k, v in quantizer.state_dict().items()}
    codebook = wide["embedding.weight"]
    table = {10: [0, 0, 1, 1, 1, 2, 2, 3, 3, 3], 5: [0, 1, 2, 2, 3]}[len(config.patch_nums)]
    residual, total = latent.copy(), np.zeros_like(latent)
    all_codes, sums, shown = [], [], []
    for scale, side in enumerate(config.patch_nums):
        final = side == config.patch_nums[-1]
        z = residual if final else resized(residual, side, "area")
        vectors = z.transpose(0, 2, 3, 1).reshape(len(z), side * side, -1)
        distances = np.square(vectors[:, :, None] - codebook).sum(axis=-1)
        codes = distances.argmin(axis=-1)
        h = codebook[codes].transpose(0, 2, 1).reshape(z.shape)
        h = h if final else resized(h, config.patch_nums[-1], "bicubic")
        name = f"quant_resi.qresi_ls.{table[scale]}"
        h = phi(h, wide[f"{name}.weight"], wide[f"{name}.bias"])
        total, residual = total + h, residual - h
        all_codes.append(codes)
        sums.append(total)
        if not final:
            following = resized(total, config.patch_nums[scale + 1], "area")
            shown.append(following.reshape(*following.shape[:2], -1).transpose(0, 2, 1))
    return all_codes, sums, shown


@pytest.mark.parametrize("config", [TINY, TEN], ids=["five scales", "ten scales"])
def test_codes_sums_and_features_equal_the_formulas(config: VarVqvaeConfig) -> None:
    quantizer = random_quantizer(config)
    latent = random_latent(config)
    codes, sums, shown = formulas(quantizer, latent.double().numpy())
    found = quantizer.encode(latent)
    assert np.array_equal(found.numpy(), np.concatenate(codes, axis=1))
    assert len(np.unique(found)) > config.vocab_size / 2
    total = torch.zeros_like(latent)
    for scale, part in enumerate(quantizer.split(found)):
        total = total + quantizer.contribution(scale, part)
        np.testing.assert_allclose(total.numpy(), sums[scale], atol=1e-5)
    whole, features = quantizer.decode_with_features(found)
    np.testing.assert_allclose(whole.numpy(), sums[-1], atol=1e-5)
    np.testing.assert_allclose(features.numpy(), np.concatenate(shown, axis=1), atol=1e-5)
    assert features.shape[1] == sum(config.lengths[1:])
    assert torch.equal(quantizer.decode(found), whole)
    assert torch.equal(quantizer.features(found), features)


def test_the_last_scale_is_shown_and_looked_up_without_a_resize() -> None:
    quantizer = random_quantizer(TINY)
    latent = random_latent(TINY)
    assert torch.equal(quantizer.shrink(4, latent), latent.flatten(2).transpose(1, 2))
    assert len(quantizer.up) == len(quantizer.down) == 4


def test_phi_refines_the_last_scale_too() -> None:
    quantizer = random_quantizer(TINY)
    codes = torch.arange(36)[None]
    plain = quantizer.embedding.weight[:36].T.reshape(1, 8, 6, 6)
    found = quantizer.contribution(4, codes)
    torch.testing.assert_close(found, quantizer.quant_resi.qresi_ls[3](plain))
    assert (found - plain).abs().max() > 0.1


def test_ten_scales_have_the_published_table_for_both_resolutions() -> None:
    wanted = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    for sides in (PATCH_NUMS_256, PATCH_NUMS_512, TEN.patch_nums):
        assert VarVqvaeConfig(patch_nums=sides).phi_of_scale == wanted


def test_the_two_ties_of_ten_scales_would_fall_otherwise_in_float32() -> None:
    """Why the table is data: ticks 1/12, 13/36, 23/36, 11/12 are as far from 2/9 and 7/9."""
    assert abs(1 / 12 - 2 / 9) == pytest.approx(abs(13 / 36 - 2 / 9), abs=1e-15)
    assert abs(23 / 36 - 7 / 9) == pytest.approx(abs(11 / 12 - 7 / 9), abs=1e-15)
    ticks = np.linspace(1 / 12, 11 / 12, 4).astype(np.float32)
    positions = np.arange(10, dtype=np.float32) / np.float32(9)
    narrow = np.abs(ticks - positions[:, None]).argmin(axis=1)
    assert narrow.tolist() != list(VarVqvaeConfig().phi_of_scale)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_other_numbers_of_scales_take_the_tick_that_numpy_finds(count: int) -> None:
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    for scales in range(2, 41):
        for scale in range(scales):
            position = scale / (scales - 1)
            assert nearest_tick(position, count) == np.abs(ticks - position).argmin()


def test_folding_phi_into_one_convolution_leaves_its_result() -> None:
    torch.manual_seed(0)
    module = Phi(8).requires_grad_(False)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(module.folded()(x), module(x), atol=1e-6, rtol=1e-6)
    assert module.folded().weight[0, 0, 1, 1] == 0.5 + 0.5 * module.weight[0, 0, 1, 1]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), codes=st.integers(1, 50), width=st.integers(1, 9))
def test_nearest_code_has_the_least_distance(seed: int, codes: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    table, z = rng.normal(size=(codes, width)), rng.normal(size=(7, width))
    found = nearest_code(torch.from_numpy(z), torch.from_numpy(table)).numpy()
    distances = np.linalg.norm(z[:, None] - table, axis=-1)
    np.testing.assert_allclose(distances[np.arange(7), found], distances.min(axis=1), rtol=1e-9)


def test_the_first_of_equal_codes_is_taken() -> None:
    table = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert nearest_code(torch.tensor([[0.9, 1.2]]), table).tolist() == [1]


def test_each_scale_encodes_what_the_earlier_ones_left() -> None:
    quantizer = random_quantizer(TINY)
    latent = random_latent(TINY)
    parts = quantizer.split(quantizer.encode(latent))
    alone = quantizer.codes(4, latent)
    assert (parts[4] != alone).float().mean() > 0.3
    errors, total = [], torch.zeros_like(latent)
    for scale, part in enumerate(parts):
        assert torch.equal(part, quantizer.codes(scale, latent - total))
        total = total + quantizer.contribution(scale, part)
        errors.append(float((latent - total).square().mean()))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("sides", [(4,), (), (0, 2), (3, 2), (2, 2, 4)])
def test_patch_numbers_that_do_not_rise_are_refused(sides: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="patch numbers"):
        VarVqvaeConfig(patch_nums=sides)
