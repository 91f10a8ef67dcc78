"""The PAR transformer against its formulas in float64 numpy, from the state_dict alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.families.par.config import PUBLISHED, ParConfig
from arvg_trt.families.par.model import ParTransformer, group_mask, rotary_rows
from arvg_trt.families.par.spec import ParSpec, generation_order
from arvg_trt.runtime.spec import Defaults

from ..shared.graphs import relative
from ..shared.models import random_tokens
from .models import SMALL, WIDE, random_par

Array = NDArray[np.float64]
State = Mapping[str, Array]
BOTH = pytest.mark.parametrize("config", [SMALL, WIDE], ids=["4x", "16x"])
pytestmark = pytest.mark.usefixtures("one_thread")


def cell_of(config: ParConfig, token: int) -> tuple[int, int]:
    """Row a m + i and column b m + j of token ((i m + j) s + a) s + b."""
    s = math.isqrt(config.group)
    m = math.isqrt(config.length) // s
    rest, b = divmod(token, s)
    rest, a = divmod(rest, s)
    i, j = divmod(rest, m)
    return a * m + i, b * m + j


def token_at(config: ParConfig, position: int) -> int | None:
    """None for the class and the special tokens."""
    n = config.group
    if 1 <= position <= n:
        return position - 1
    return position - n if position >= 2 * n else None


def turned(config: ParConfig, position: int, x: Array) -> Array:
    """x [d] with complex pairs times e^(i angle); zero where there is no cell."""
    token = token_at(config, position)
    if token is None:
        return np.zeros_like(x)
    d = len(x)
    base = config.rope_base ** (-2 * np.arange(d // 4) / (d // 2))
    row, column = cell_of(config, token)
    angles = np.concatenate([row * base, column * base])
    pairs = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], axis=1).reshape(-1)


def visible(config: ParConfig, position: int) -> int:
    """How many positions it sees, from the first on: with its group of n, from position n on."""
    n = config.group
    return position + 1 if position < n else (position // n + 1) * n


def rms(state: State, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"]


def attention(config: ParConfig, state: State, name: str, x: Array) -> Array:
    """One row [n, C], head by head and position by position."""
    d = config.head_dim
    qkv = x @ state[f"{name}.wqkv.weight"].T
    out = np.empty_like(x)
    for h in range(config.heads):
        q, k, v = (
            qkv[:, part * config.width + h * d : part * config.width + (h + 1) * d]
            for part in range(3)
        )
        q, k = (np.stack([turned(config, p, row) for p, row in enumerate(a)]) for a in (q, k))
        for p in range(len(x)):
            end = min(visible(config, p), len(x))
            scores = k[:end] @ q[p] / math.sqrt(d)
            weights = np.exp(scores - scores.max())
            out[p, h * d : (h + 1) * d] = weights / weights.sum() @ v[:end]
    return out @ state[f"{name}.wo.weight"].T


def logits_by_formula(model: ParTransformer, label: int, tokens: list[int]) -> Array:
    """Return the logits [length, V] of one row; entry i predicts token i."""
    config = model.config
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    special = iter(state["spe_tok_embeddings.special_embeddings.weight"])
    rows = [state["cls_embedding.embedding_table.weight"][label]]
    for position in range(1, config.length):
        token = token_at(config, position)
        table = state["tok_embeddings.weight"]
        rows.append(next(special) if token is None else table[tokens[token]])
    x = np.stack(rows)
    for i in range(config.depth):
        layer = f"layers.{i}"
        normed = rms(state, f"{layer}.attention_norm", x)
        x = x + attention(config, state, f"{layer}.attention", normed)
        y = rms(state, f"{layer}.ffn_norm", x)
        gate, up = (y @ state[f"{layer}.feed_forward.{w}.weight"].T for w in ("w1", "w3"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ state[f"{layer}.feed_forward.w2.weight"].T
    return rms(state, "norm", x) @ state["output.weight"].T


@BOTH
def test_teacher_forced_logits_are_the_formulas(config: ParConfig) -> None:
    model, labels = random_par(config), [3, config.num_classes]  # a class and the null class
    tokens = random_tokens(config, 2, config.length - config.group)
    found = model(torch.tensor(labels), tokens).numpy()
    assert found.shape == (2, config.length, config.vocab_size)
    for row, label in enumerate(labels):
        wanted = logits_by_formula(model, label, tokens[row].tolist())
        assert relative(found[row], wanted) < 1e-4


@BOTH
def test_cached_steps_of_the_schedule_need_no_mask(config: ParConfig) -> None:
    """Single positions, then groups: all that is cached and all of the step is visible."""
    model, labels = random_par(config), torch.tensor([0, config.num_classes])
    tokens = random_tokens(config, 2, config.length - config.group)
    whole = model(labels, tokens)
    sequence = model.sequence(labels, tokens)
    bounds = [*range(config.group), *range(config.group, config.length + 1, config.group)]
    past, found = None, []
    for a, b in pairwise(bounds):
        x, rotary = model.embed(sequence[:, a:b]), model.rotary(torch.arange(a, b))
        logits, past = model.step(x, rotary, past)
        found.append(logits)
    cached = torch.cat(found, dim=1)
    assert relative(cached.numpy(), whole.numpy()) < 2e-5
    assert torch.equal(cached.argmax(-1), whole.argmax(-1))


@BOTH
def test_class_and_special_tokens_have_queries_and_keys_of_zero(config: ParConfig) -> None:
    """cos and sin are both zero: no rotation at all would be cos = 1."""
    rows, n = rotary_rows(config), config.group
    without = [0, *range(n + 1, 2 * n)]
    assert rows.shape == (config.length, config.head_dim // 2, 2)
    assert rows[without].abs().max() == 0
    others = [p for p in range(config.length) if p not in without]
    torch.testing.assert_close(rows[others].square().sum(-1), torch.ones(len(others), 1).expand(
        -1, config.head_dim // 2
    ))  # fmt: skip
    cos, sin = random_par(config).rotary(torch.tensor(without))
    assert cos.abs().max() == sin.abs().max() == 0


def test_the_class_is_attended_as_much_as_the_special_tokens() -> None:
    """With keys of zero their scores are 0, whatever the weights say."""
    model = random_par()
    attention = model.layers[0].attention
    tokens = random_tokens(SMALL, 1, SMALL.length - SMALL.group)
    before = model.run(torch.tensor([1]), tokens)[1][0][0]
    attention.wqkv.weight[SMALL.width : 2 * SMALL.width].mul_(3)
    after = model.run(torch.tensor([1]), tokens)[1][0][0]
    without = [0, *range(SMALL.group + 1, 2 * SMALL.group)]
    assert before[:, :, without].abs().max() == 0 == after[:, :, without].abs().max()
    assert (after - before).abs().max() > 1


@pytest.mark.parametrize(("side", "group"), [(4, 4), (8, 16), (24, 4), (24, 16)])
def test_a_group_is_the_same_cell_of_all_regions(side: int, group: int) -> None:
    config = ParConfig(1, 4, 1, length=side * side, group=group)
    order = generation_order(side, group)
    assert sorted(order) == list(range(side * side))
    cells = [cell_of(config, k) for k in range(side * side)]
    assert [row * side + column for row, column in cells] == order.tolist()
    m = side // math.isqrt(group)
    for start in range(0, side * side, group):
        rows, columns = np.divmod(order[start : start + group], side)
        assert len(set(rows % m)) == len(set(columns % m)) == 1
        assert len({(r // m, c // m) for r, c in zip(rows, columns, strict=True)}) == group


@pytest.mark.parametrize("config", [SMALL, WIDE, PUBLISHED["xl-4x"], PUBLISHED["3b-16x"]])
def test_the_mask_is_the_published_one(config: ParConfig) -> None:
    """The lower triangle, the class, and from position n on blocks of n rows that see their own."""
    n, length = config.group, config.length
    wanted = np.tril(np.ones((length, length), bool))
    wanted[:, 0] = True
    for start in range(n, length, n):
        wanted[start : start + n, : start + n] = True
    assert np.array_equal(group_mask(config).numpy() == 0, wanted)
    assert np.isneginf(group_mask(config).numpy()[~wanted]).all()


@BOTH
def test_a_token_changes_what_follows_its_group_alone(config: ParConfig) -> None:
    n, model = config.group, random_par(config)
    tokens = random_tokens(config, 1, config.length - n)
    before = model(torch.tensor([1]), tokens)
    for token, first in ((1, 2), (n - 1, n), (n, 2 * n), (2 * n - 1, 2 * n)):
        changed = tokens.clone()
        changed[:, token] = (changed[:, token] + 1) % config.vocab_size
        after = model(torch.tensor([1]), changed)
        torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-5)
        assert (after[:, first] - before[:, first]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "cls_embedding.embedding_table.weight",
        "spe_tok_embeddings.special_embeddings.weight",
        "layers.1.attention_norm.weight",
        "layers.1.attention.wqkv.weight",
        "layers.1.feed_forward.w3.weight",
        "layers.1.ffn_norm.weight",
        "norm.weight",
    ],
)
def test_random_weights_make_every_part_visible(name: str) -> None:
    """Guards the parity tests: with the official head of zeros anything would pass them."""
    model, tokens = random_par(), random_tokens(SMALL, 1, SMALL.length - SMALL.group)
    before = model(torch.tensor([1]), tokens)
    parameter = dict(model.named_parameters())[name]
    parameter[0] *= 1.2  # of a table one row, of a norm one channel: its scale would not show
    if "cls" in name:
        parameter[1] *= 1.2
    after = model(torch.tensor([1]), tokens)
    assert relative(after.numpy(), before.numpy()) > 1e-4


def test_a_training_step_reaches_every_parameter() -> None:
    """Labels may be the null class; the last group is a target and never an input."""
    torch.manual_seed(0)
    model = ParTransformer(SMALL)
    tokens = random_tokens(SMALL, 3, SMALL.length)
    labels = torch.tensor([0, 4, SMALL.num_classes])
    logits = model(labels, tokens[:, : -SMALL.group])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(("name", "steps"), [("xl-4x", 147), ("3b-16x", 51)])
def test_steps_are_as_many_as_published(name: str, steps: int) -> None:
    config = PUBLISHED[name]
    spec = ParSpec(
        side=config.side,
        group=config.group,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        image_size=384,
        defaults=Defaults(cfg=1.5, top_k=0, top_p=1.0),
    )
    assert spec.steps == steps
    assert spec.special.tolist() == [config.special_tokens + k for k in range(config.special)]
