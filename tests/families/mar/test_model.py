"""The MAR transformers and denoiser against their formulas in float64 numpy, from the state_dict.

The formulas are the official ones: sequences in raster order, rows dropped and put back by a mask.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.families.mar.model import MarTransformer

from ..shared.formulas import Array, Arrays, gelu, linear, norm, silu
from ..shared.graphs import relative
from .models import SMALL, random_known, random_mar

pytestmark = pytest.mark.usefixtures("one_thread")


def block(state: Arrays, name: str, x: Array) -> Array:
    """One row [n, C]; every position sees all."""
    width, heads = SMALL.width, SMALL.heads
    d = width // heads
    qkv = linear(state, f"{name}.attn.qkv", norm(x, state, f"{name}.norm1"))
    out = np.empty_like(x)
    for h in range(heads):
        q, k, v = (qkv[:, part * width + h * d : part * width + (h + 1) * d] for part in range(3))
        scores = np.exp(q @ k.T / math.sqrt(d))
        out[:, h * d : (h + 1) * d] = scores / scores.sum(1, keepdims=True) @ v
    x = x + linear(state, f"{name}.attn.proj", out)
    h = gelu(linear(state, f"{name}.mlp.fc1", norm(x, state, f"{name}.norm2")))
    return x + linear(state, f"{name}.mlp.fc2", h)


def encoder_by_formula(
    state: Arrays, raster: Array, masked: NDArray[np.bool_], label: int
) -> Array:
    """One row: tokens [L, c] in raster order -> [buffer + N, C], known ones in raster order."""
    null = label == SMALL.num_classes
    latent = state["fake_latent"][0] if null else state["class_emb.weight"][label]
    x = linear(state, "z_proj", raster)
    x = np.concatenate([np.tile(latent, (SMALL.buffer, 1)), x])
    x = norm(x + state["encoder_pos_embed_learned"][0], state, "z_proj_ln")
    x = x[np.concatenate([np.ones(SMALL.buffer, bool), ~masked])]
    for i in range(SMALL.encoder_depth):
        x = block(state, f"encoder_blocks.{i}", x)
    return norm(x, state, "encoder_norm")


def decoder_by_formula(state: Arrays, encoded: Array, masked: NDArray[np.bool_]) -> Array:
    """-> [L, C] in raster order."""
    full = np.tile(state["mask_token"][0], (SMALL.buffer + SMALL.length, 1))
    seen = np.concatenate([np.ones(SMALL.buffer, bool), ~masked])
    full[seen] = linear(state, "decoder_embed", encoded)
    x = full + state["decoder_pos_embed_learned"][0]
    for i in range(SMALL.decoder_depth):
        x = block(state, f"decoder_blocks.{i}", x)
    x = norm(x, state, "decoder_norm")[SMALL.buffer :]
    return x + state["diffusion_pos_embed_learned"][0]


def denoiser_by_formula(state: Arrays, x: Array, time: int, z: Array) -> Array:
    """x [m, c], z [m, C] -> [m, 2c]."""
    net = "diffloss.net"
    half = SMALL.frequencies // 2
    angles = np.array([time * 10000 ** (-k / half) for k in range(half)])
    waves = np.concatenate([np.cos(angles), np.sin(angles)])
    t = linear(
        state, f"{net}.time_embed.mlp.2", silu(linear(state, f"{net}.time_embed.mlp.0", waves))
    )
    y = silu(t + linear(state, f"{net}.cond_embed", z))
    h = linear(state, f"{net}.input_proj", x)
    for j in range(SMALL.head_depth):
        name = f"{net}.res_blocks.{j}"
        shift, scale, gate = np.split(linear(state, f"{name}.adaLN_modulation.1", y), 3, axis=1)
        inner = norm(h, state, f"{name}.in_ln") * (1 + scale) + shift
        inner = linear(state, f"{name}.mlp.2", silu(linear(state, f"{name}.mlp.0", inner)))
        h = h + gate * inner
    last = f"{net}.final_layer"
    shift, scale = np.split(linear(state, f"{last}.adaLN_modulation.1", y), 2, axis=1)
    return linear(state, f"{last}.linear", norm(h) * (1 + scale) + shift)


def state_of(model: MarTransformer) -> Arrays:
    return {k: v.double().numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("known", [0, 1, 9, SMALL.length - 1])
def test_encoder_and_decoder_are_the_formulas(known: int) -> None:
    model, labels = random_mar(), [3, SMALL.num_classes]  # a class and the null class
    tokens, orders = random_known(SMALL, 2, known)
    encoded = model.encode(torch.tensor(labels), tokens, orders[:, :known])
    z = model(torch.tensor(labels), tokens, orders)
    assert z.shape == (2, SMALL.length - known, SMALL.width)
    state = state_of(model)
    for row, label in enumerate(labels):
        order = orders[row].numpy()
        raster, masked = (
            np.zeros((SMALL.length, SMALL.latent_channels)),
            np.ones(SMALL.length, bool),
        )
        raster[order[:known]], masked[order[:known]] = tokens[row].numpy(), False
        wanted = encoder_by_formula(state, raster, masked, label)
        by_place = np.argsort(order[:known])
        rows = np.concatenate([np.arange(SMALL.buffer), SMALL.buffer + by_place])
        assert relative(encoded[row].numpy()[rows], wanted) < 1e-4
        wanted = decoder_by_formula(state, wanted, masked)
        assert relative(z[row].numpy(), wanted[order[known:]]) < 1e-4


@pytest.mark.parametrize("time", [0, 1, 496, 999])
def test_the_denoiser_is_the_formula(time: int) -> None:
    model = random_mar()
    x, z = torch.randn(3, SMALL.latent_channels), torch.randn(3, SMALL.width)
    found = model.diffloss.net(x, torch.full((3,), time), z)
    wanted = denoiser_by_formula(state_of(model), x.double().numpy(), time, z.double().numpy())
    assert found.shape == (3, 2 * SMALL.latent_channels)
    assert relative(found.numpy(), wanted) < 1e-4


def test_the_order_of_known_tokens_changes_nothing() -> None:
    """Attention without a mask: rows need not be put back into raster order."""
    model, label, known = random_mar(), torch.tensor([2]), 7
    tokens, order = random_known(SMALL, 1, known)
    before = model(label, tokens, order)
    shuffled = torch.randperm(known, generator=torch.Generator().manual_seed(3))
    order = torch.cat((order[:, :known][:, shuffled], order[:, known:]), dim=1)
    assert relative(model(label, tokens[:, shuffled], order).numpy(), before.numpy()) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "fake_latent",
        "mask_token",
        "encoder_pos_embed_learned",
        "decoder_pos_embed_learned",
        "diffusion_pos_embed_learned",
        "z_proj_ln.bias",
        "encoder_blocks.1.norm1.bias",
        "encoder_norm.weight",
        "decoder_embed.weight",
        "decoder_blocks.2.mlp.fc1.weight",
        "decoder_norm.bias",
    ],
)
def test_random_weights_make_every_part_visible(name: str) -> None:
    """Guards the parity tests: a part that no output shows could be wrong."""
    model, label = random_mar(), torch.tensor([SMALL.num_classes])
    tokens, order = random_known(SMALL, 1, 5)
    before = model(label, tokens, order)
    dict(model.named_parameters())[name].mul_(1.1)
    assert relative(model(label, tokens, order).numpy(), before.numpy()) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "time_embed.mlp.0.weight",
        "cond_embed.bias",
        "res_blocks.1.in_ln.bias",
        "res_blocks.1.adaLN_modulation.1.weight",
        "res_blocks.0.mlp.2.weight",
        "final_layer.adaLN_modulation.1.bias",
    ],
)
def test_random_weights_make_every_part_of_the_denoiser_visible(name: str) -> None:
    net = random_mar().diffloss.net
    args = (
        torch.randn(3, SMALL.latent_channels),
        torch.tensor([0, 5, 999]),
        torch.randn(3, SMALL.width),
    )
    before = net(*args)
    dict(net.named_parameters())[name].mul_(1.1)
    assert relative(net(*args).numpy(), before.numpy()) > 1e-3
