"""The RAR transformer against its formulas in float64 numpy, from the state_dict alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from arvg_trt.families.rar.model import RarTransformer
from arvg_trt.families.shared.transformer import causal_mask

from ..shared.formulas import Array, Arrays, gelu, linear, norm, silu
from ..shared.graphs import relative
from ..shared.models import random_tokens
from .models import SMALL, random_rar

LENGTH = SMALL.length
CLASSES = SMALL.num_classes
pytestmark = pytest.mark.usefixtures("one_thread")


def attention(state: Arrays, name: str, x: Array) -> Array:
    """One row [n, C], head by head; a position sees itself and those before it."""
    width, heads = SMALL.width, SMALL.heads
    d = width // heads
    qkv = linear(state, f"{name}.qkv", x)
    out = np.empty_like(x)
    for h in range(heads):
        q, k, v = (qkv[:, part * width + h * d : part * width + (h + 1) * d] for part in range(3))
        q, k = norm(q, state, f"{name}.q_norm"), norm(k, state, f"{name}.k_norm")
        for i in range(len(x)):
            scores = k[: i + 1] @ q[i] / math.sqrt(d)
            weights = np.exp(scores - scores.max())
            out[i, h * d : (h + 1) * d] = weights / weights.sum() @ v[: i + 1]
    return linear(state, f"{name}.proj", out)


def logits_by_formula(model: RarTransformer, label: int, tokens: list[int]) -> Array:
    """Return the logits [1 + n, V] of one row; entry i predicts token i."""
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    table = state["embeddings.weight"]
    condition_token = table[SMALL.vocab_size + 1 + label]
    rows = [state["cls_token"][0, 0], condition_token, *(table[t] for t in tokens)]
    x = np.stack(rows)
    for j in range(len(rows)):
        x[j] = x[j] + state["pos_embed"][0, j]
        if j > 0:  # position 1 + i is told the place of token i, which it predicts
            x[j] = x[j] + state["target_aware_pos_embed"][0, 2 + (j - 1)]
    condition = condition_token + state["timesteps_embeddings"][0, : len(rows)]
    for i in range(SMALL.depth):
        block = f"blocks.{i}"
        modulation = linear(state, f"{block}.adaLN_modulation.1", silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(modulation, 6, axis=1)
        h = norm(x, state, f"{block}.norm1") * (1 + scale1) + shift1
        x = x + gate1 * attention(state, f"{block}.attn", h)
        h = norm(x, state, f"{block}.norm2") * (1 + scale2) + shift2
        h = linear(state, f"{block}.mlp.fc2", gelu(linear(state, f"{block}.mlp.fc1", h)))
        x = x + gate2 * h
    x, condition = x[1:], condition[1:]  # without cls
    modulation = linear(state, "adaln_before_head.adaLN_modulation.1", silu(condition))
    scale, shift = np.split(modulation, 2, axis=1)
    return linear(state, "lm_head", norm(x) * (1 + scale) + shift)


@pytest.mark.parametrize("count", [0, 1, LENGTH - 1])
def test_teacher_forced_logits_are_the_formulas(count: int) -> None:
    model, labels = random_rar(), [3, CLASSES]  # a class and the null class
    tokens = random_tokens(SMALL, 2, count)
    found = model(torch.tensor(labels), tokens).numpy()
    assert found.shape == (2, count + 1, SMALL.vocab_size)
    for row, label in enumerate(labels):
        wanted = logits_by_formula(model, label, tokens[row].tolist())
        assert relative(found[row], wanted) < 1e-4


def cached(model: RarTransformer, labels: torch.Tensor, tokens: torch.Tensor, bounds: list[int]):  # type: ignore[no-untyped-def]
    """Logits of all positions, from one cached step between each two bounds."""
    sequence = torch.cat((model.prefix(labels), tokens), dim=1)
    past, found = None, []
    for a, b in pairwise(bounds):
        ids = torch.arange(a, b)
        condition = model.conditions(labels, ids)
        mask = causal_mask(ids, b, torch.float32) if b - a > 1 else None
        logits, past = model.step(
            model.embed(sequence[:, a:b], ids),
            model.modulations(condition),
            model.adaln_before_head(condition),
            past,
            mask,
        )
        found.append(logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(
    "bounds", [[0, *range(2, LENGTH + 2)], [0, 1, 2, 9, LENGTH + 1]], ids=["tokens", "chunks"]
)
def test_cached_steps_equal_one_causal_pass(bounds: list[int]) -> None:
    """A single token behind a cache needs no mask; several need the causal one."""
    model, labels = random_rar(), torch.tensor([0, CLASSES])
    tokens = random_tokens(SMALL, 2, LENGTH - 1)
    whole = model(labels, tokens)
    found = cached(model, labels, tokens, bounds)[:, 1:]
    assert relative(found.numpy(), whole.numpy()) < 2e-5
    assert torch.equal(found.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize(
    "name",
    [
        "cls_token",
        "pos_embed",
        "target_aware_pos_embed",
        "timesteps_embeddings",
        "blocks.1.norm1.bias",
        "blocks.1.attn.q_norm.bias",
        "blocks.1.attn.k_norm.weight",
        "blocks.1.adaLN_modulation.1.weight",
        "blocks.1.mlp.fc1.weight",
        "adaln_before_head.adaLN_modulation.1.weight",
    ],
)
def test_random_weights_make_every_part_visible(name: str) -> None:
    """Guards the parity tests: with the official zero modulation a wrong block would pass them."""
    model, tokens = random_rar(), random_tokens(SMALL, 1, LENGTH - 1)
    before = model(torch.tensor([1]), tokens)
    dict(model.named_parameters())[name].mul_(1.1)
    after = model(torch.tensor([1]), tokens)
    assert relative(after.numpy(), before.numpy()) > 1e-3


def test_a_prediction_sees_the_tokens_before_it_alone() -> None:
    model, tokens = random_rar(), random_tokens(SMALL, 1, LENGTH - 1)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % SMALL.vocab_size
    before, after = (model(torch.tensor([1]), t) for t in (tokens, changed))
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7] - before[:, 7]).abs().max() > 1e-3


def test_tables_beyond_the_sequence_are_not_read() -> None:
    """The official tables have a thousand rows more than a sequence has positions."""
    model, tokens = random_rar(), random_tokens(SMALL, 1, LENGTH - 1)
    before = model(torch.tensor([1]), tokens)
    model.pos_embed[:, LENGTH + 1 :] = torch.nan
    model.target_aware_pos_embed[:, LENGTH + 2 :] = torch.nan
    model.target_aware_pos_embed[:, :2] = torch.nan  # cls and the class are nobody's target
    model.timesteps_embeddings[:, LENGTH + 1 :] = torch.nan
    model.embeddings.weight[SMALL.vocab_size] = torch.nan  # the mask token of the training
    assert torch.equal(model(torch.tensor([1]), tokens), before)
