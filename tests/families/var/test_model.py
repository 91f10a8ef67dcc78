"""The VAR transformer against its formulas in float64 numpy, from the state_dict alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var_vqvae.config import PATCH_NUMS_256, PATCH_NUMS_512

from ..shared.graphs import relative
from .models import FORMS, SMALL, features_of, random_var

Array = NDArray[np.float64]
State = Mapping[str, Array]


def layer_norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(state: State, prefix: str, x: Array, heads: int, visible: NDArray[np.bool_]) -> Array:
    """One row [L, C], head by head."""
    width = x.shape[1]
    d = width // heads
    bias = np.concatenate([state[f"{prefix}.q_bias"], np.zeros(width), state[f"{prefix}.v_bias"]])
    qkv = x @ state[f"{prefix}.mat_qkv.weight"].T + bias
    out = np.empty_like(x)
    for h in range(heads):
        q, k, v = (qkv[:, part * width + h * d : part * width + (h + 1) * d] for part in range(3))
        scale_mul = state.get(f"{prefix}.scale_mul_1H11")
        if scale_mul is None:
            q = q * 0.25 / math.sqrt(d)
        else:
            q = q / np.linalg.norm(q, axis=1, keepdims=True)
            q = q * np.exp(min(scale_mul[0, h, 0, 0], math.log(100)))
            k = k / np.linalg.norm(k, axis=1, keepdims=True)
        scores = np.where(visible, q @ k.T, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h * d : (h + 1) * d] = weights / weights.sum(1, keepdims=True) @ v
    return out @ state[f"{prefix}.proj.weight"].T + state[f"{prefix}.proj.bias"]


def logits_by_formula(model: VarTransformer, label: int, features: Array) -> Array:
    """Return the logits [L, V] of one row."""
    config = model.config
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    level = np.repeat(np.arange(len(config.patch_nums)), np.square(config.patch_nums))
    condition = state["class_emb.weight"][label]
    first = condition + state["pos_start"][0]
    rest = features @ state["word_embed.weight"].T + state["word_embed.bias"]
    x = np.concatenate([first, rest])
    x = x + state["lvl_embed.weight"][level] + state["pos_1LC"][0]
    for i in range(config.depth):
        block = f"blocks.{i}"
        name = "shared_ada_lin.1" if config.shared_aln else f"{block}.ada_lin.1"
        rows = state[f"{name}.weight"] @ silu(condition) + state[f"{name}.bias"]
        rows = rows.reshape(6, -1)
        if config.shared_aln:
            rows = rows + state[f"{block}.ada_gss"][0, 0]
        g1, g2, s1, s2, h1, h2 = rows
        visible = level[:, None] >= level[None, :]
        h = layer_norm(x) * (1 + s1) + h1
        x = x + g1 * attention(state, f"{block}.attn", h, config.heads, visible)
        h = layer_norm(x) * (1 + s2) + h2
        h = gelu_tanh(h @ state[f"{block}.ffn.fc1.weight"].T + state[f"{block}.ffn.fc1.bias"])
        x = x + g2 * (h @ state[f"{block}.ffn.fc2.weight"].T + state[f"{block}.ffn.fc2.bias"])
    rows = state["head_nm.ada_lin.1.weight"] @ silu(condition) + state["head_nm.ada_lin.1.bias"]
    scale, shift = rows.reshape(2, -1)
    h = layer_norm(x) * (1 + scale) + shift
    return h @ state["head.weight"].T + state["head.bias"]


def cached_logits(model: VarTransformer, labels: torch.Tensor, features: torch.Tensor) -> list:  # type: ignore[type-arg]
    """Logits of each scale, the tokens before it from the cache alone."""
    bounds = model.config.bounds
    start, modulation, head = model.condition(labels)
    x = torch.cat((start, model.word_embed(features)), dim=1)
    past, found = None, []
    for a, b in pairwise(bounds):
        logits, past = model.step(x[:, a:b], model.positions()[a:b], modulation, head, past)
        found.append(logits)
    assert past is not None and past[0][0].shape[2] == model.config.length
    return found


@pytest.mark.parametrize("config", FORMS, ids=["adaln", "shared adaln", "no l2 norm"])
def test_teacher_forced_logits_are_the_formulas(config: VarConfig) -> None:
    model = random_var(config)
    features = features_of(config, rows=2)
    labels = torch.tensor([2, config.num_classes])
    found = model(labels, features).numpy()
    for row, label in enumerate((2, config.num_classes)):
        wanted = logits_by_formula(model, label, features[row].double().numpy())
        assert relative(found[row], wanted) < 1e-4


@pytest.mark.parametrize("config", FORMS, ids=["adaln", "shared adaln", "no l2 norm"])
def test_cached_steps_equal_one_block_causal_pass(config: VarConfig) -> None:
    model = random_var(config)
    features = features_of(config, rows=2)
    labels = torch.tensor([0, config.num_classes])
    whole = model(labels, features)
    found = torch.cat(cached_logits(model, labels, features), dim=1)
    assert relative(found.numpy(), whole.numpy()) < 2e-5
    assert torch.equal(found.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.attn.q_bias",
        "blocks.1.attn.v_bias",
        "blocks.1.attn.scale_mul_1H11",
        "blocks.1.ada_lin.1.weight",
        "blocks.1.ffn.fc1.weight",
        "head_nm.ada_lin.1.weight",
        "pos_start",
        "lvl_embed.weight",
    ],
)
def test_random_weights_make_every_part_visible(name: str) -> None:
    """Guards the parity tests: with the official gates of 1e-5 a wrong block would pass them."""
    model = random_var(SMALL)
    features = features_of(SMALL, rows=1)
    before = model(torch.tensor([1]), features)
    dict(model.named_parameters())[name].mul_(1.1)
    after = model(torch.tensor([1]), features)
    assert relative(after.numpy(), before.numpy()) > 1e-3


def test_a_learned_scale_stops_at_one_hundred() -> None:
    model = random_var(SMALL)
    scale = model.blocks[0].attn.scale_mul_1H11
    scale.fill_(math.log(100))
    limit = model.blocks[0].attn.query_scale().clone()
    scale.fill_(9.0)
    assert torch.equal(model.blocks[0].attn.query_scale(), limit)
    torch.testing.assert_close(limit, torch.full_like(limit, 100.0))


def test_labels_are_never_dropped() -> None:
    """The official forward replaces one label in ten by the null class, also in eval mode."""
    model = random_var(SMALL)
    features = features_of(SMALL, rows=1).expand(64, -1, -1)
    found = model(torch.full((64,), 3), features)
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-4, atol=1e-4)


def test_a_token_sees_its_own_and_earlier_scales_alone() -> None:
    model = random_var(SMALL)
    features = features_of(SMALL, rows=1)
    bounds = SMALL.bounds
    changed = features.clone()
    changed[:, bounds[2] - 1 :] += 1.0  # from the third scale on; the first has no features
    before, after = (model(torch.tensor([1]), f) for f in (features, changed))
    torch.testing.assert_close(after[:, : bounds[2]], before[:, : bounds[2]], rtol=0, atol=1e-6)
    last_of_scale = features.clone()
    last_of_scale[:, bounds[2] - 2] += 1.0  # the last token of the second scale
    moved = model(torch.tensor([1]), last_of_scale) - before
    assert moved[:, bounds[1]].abs().max() > 1e-3


@pytest.mark.parametrize(("patch_nums", "length"), [(PATCH_NUMS_256, 680), (PATCH_NUMS_512, 2240)])
def test_published_schedules_have_their_lengths(patch_nums: tuple[int, ...], length: int) -> None:
    config = replace(SMALL, patch_nums=patch_nums)
    assert config.length == length == config.bounds[-1]
    assert config.bounds[:4] == (0, 1, 5, 14)
