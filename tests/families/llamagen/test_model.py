"""The LlamaGen transformer against its formulas in float64 numpy, from the state_dict alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.families.llamagen.config import PUBLISHED
from arvg_trt.families.llamagen.model import LlamagenTransformer
from arvg_trt.families.shared.llama.config import LlamaConfig

from ..shared.graphs import relative
from ..shared.models import random_tokens
from .models import SEEN, SMALL, random_llamagen

Array = NDArray[np.float64]
State = Mapping[str, Array]
# Other bases and widths: three heads of eight, a map of 8x8 cells.
WIDE = replace(SMALL, width=24, heads=3, hidden=40, length=64, rope_base=500.0, norm_eps=1e-3)
BOTH = pytest.mark.parametrize("config", [SMALL, WIDE], ids=["4x4", "8x8"])
pytestmark = pytest.mark.usefixtures("one_thread")


def turned(config: LlamaConfig, position: int, x: Array) -> Array:
    """x [d] with pairs (2j, 2j + 1) as complex numbers times e^(i angle); the class's is zero.

    Of the d/2 pairs the first half turns by the row of the token's cell, the other by its column,
    the j-th of d/4 by base^(-2j / (d/2)) of it.
    """
    if position == 0:
        return np.zeros_like(x)
    row, column = divmod(position - 1, math.isqrt(config.length))
    quarter = len(x) // 4
    base = config.rope_base ** (-np.arange(quarter) / quarter)
    pairs = (x[0::2] + 1j * x[1::2]) * np.exp(1j * np.concatenate([row * base, column * base]))
    return np.stack([pairs.real, pairs.imag], axis=1).reshape(-1)


def rms(config: LlamaConfig, state: State, name: str, x: Array) -> Array:
    mean = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(mean + config.norm_eps) * state[f"{name}.weight"]


def attention(config: LlamaConfig, state: State, name: str, x: Array) -> Array:
    """One row [n, C], head by head and position by position, each over what is before it."""
    d, width = config.width // config.heads, config.width
    qkv = x @ state[f"{name}.wqkv.weight"].T
    out = np.empty_like(x)
    for h in range(config.heads):
        q, k, v = (qkv[:, p * width + h * d : p * width + (h + 1) * d] for p in range(3))
        q, k = (np.stack([turned(config, i, row) for i, row in enumerate(a)]) for a in (q, k))
        for i in range(len(x)):
            weights = np.exp(k[: i + 1] @ q[i] / math.sqrt(d))
            out[i, h * d : (h + 1) * d] = weights / weights.sum() @ v[: i + 1]
    return out @ state[f"{name}.wo.weight"].T


def logits_by_formula(model: LlamagenTransformer, label: int, tokens: list[int]) -> Array:
    """[1 + n, V] of one row, entry i predicting token i."""
    config = model.config
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    first = state["cls_embedding.embedding_table.weight"][label]
    x = np.stack([first, *(state["tok_embeddings.weight"][t] for t in tokens)])
    for i in range(config.depth):
        layer = f"layers.{i}"
        normed = rms(config, state, f"{layer}.attention_norm", x)
        x = x + attention(config, state, f"{layer}.attention", normed)
        y = rms(config, state, f"{layer}.ffn_norm", x)
        gate, up = (y @ state[f"{layer}.feed_forward.{w}.weight"].T for w in ("w1", "w3"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ state[f"{layer}.feed_forward.w2.weight"].T
    return rms(config, state, "norm", x) @ state["output.weight"].T


@BOTH
def test_teacher_forced_logits_are_the_formulas(config: LlamaConfig) -> None:
    model, labels = random_llamagen(config), [3, config.num_classes]  # a class and the null class
    tokens = random_tokens(config, 2, config.length - 1)
    found = model(torch.tensor(labels), tokens).numpy()
    assert found.shape == (2, config.length, config.vocab_size)
    for row, label in enumerate(labels):
        wanted = logits_by_formula(model, label, tokens[row].tolist())
        assert relative(found[row], wanted) < 1e-4


@BOTH
def test_cached_steps_of_one_token_need_no_mask(config: LlamaConfig) -> None:
    model, labels = random_llamagen(config), torch.tensor([0, config.num_classes])
    tokens = random_tokens(config, 2, config.length - 1)
    whole, sequence = model(labels, tokens), model.sequence(labels, tokens)
    past, found = None, []
    for a, b in pairwise(range(config.length + 1)):
        x, rotary = model.embed(sequence[:, a:b]), model.rotary(torch.arange(a, b))
        logits, past = model.step(x, rotary, past)
        found.append(logits)
    cached = torch.cat(found, dim=1)
    assert relative(cached.numpy(), whole.numpy()) < 2e-5
    assert torch.equal(cached.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize("config", [SMALL, WIDE, PUBLISHED["b-256"], PUBLISHED["3b-384"]])
def test_the_class_has_a_query_and_a_key_of_zero(config: LlamaConfig) -> None:
    """cos and sin are both zero: no rotation at all would be cos = 1."""
    with torch.device("meta"):
        model = LlamagenTransformer(config)
    turns = model.rotations()
    assert turns.shape == (config.length, config.head_dim // 2, 2)
    assert turns[0].abs().max() == 0
    ones = torch.ones(config.length - 1, config.head_dim // 2)
    torch.testing.assert_close(turns[1:].square().sum(-1), ones)


def test_a_token_changes_only_what_follows_it() -> None:
    model, tokens = random_llamagen(), random_tokens(SMALL, 1, SEEN)
    before = model(torch.tensor([1]), tokens)
    for token in (0, 6, SEEN - 1):
        changed = tokens.clone()
        changed[:, token] = (changed[:, token] + 1) % SMALL.vocab_size
        after = model(torch.tensor([1]), changed)
        torch.testing.assert_close(after[:, : token + 1], before[:, : token + 1])
        assert (after[:, token + 1] - before[:, token + 1]).abs().max() > 1e-3


def test_a_training_step_reaches_every_parameter() -> None:
    """Labels may be the null class; the last token is a target and never an input."""
    torch.manual_seed(0)
    model = LlamagenTransformer(SMALL)
    tokens = random_tokens(SMALL, 3, SMALL.length)
    logits = model(torch.tensor([0, 4, SMALL.num_classes]), tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
