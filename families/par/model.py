"""The PAR transformer (Wang et al. 2024): groups of distant tokens at once, in LlamaGen's blocks.

Parameter names are the official ones, so a published ``state_dict`` loads with ``strict=True``.
Dropout is left out; labels are dropped by whoever trains, for the null class `num_classes`.

Positions of the sequence, with n = `group`: the class (0), tokens 0 to n - 1 (1 to n), n - 1
special tokens, tokens n and on (2n and on). Position i predicts token i. The first n positions see
what is before them; from there on each n positions see each other as well, and predict n tokens.
Tokens are in the order of `generation_order`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.transformer import CachedAttention, KeyValue, joined_heads
from .config import ParConfig
from .spec import generation_order

Rotary = tuple[Tensor, Tensor]  # cos, sin [2, 1, 1, n, d/2, 1] of q and k at n positions


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # This form, with a power, is the one that backends fuse.
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (2j, 2j + 1) of the last axis, [2, rows, H, n, d] of q and k."""
    a, b = x.reshape(*x.shape[:-1], -1, 2).chunk(2, dim=-1)
    cos, sin = rotary
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class ParAttention(CachedAttention):
    """Self-attention with rotated q and k; the scale of the scores is in q's rotation."""

    def __init__(self, config: ParConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """[rows, n, C] -> the same, and rotated keys and values of all tokens so far."""
        qk, v = torch.split(joined_heads(self.wqkv(x), self.heads), [2, 1])
        q, k = rotate(qk, rotary).chunk(2, dim=0)
        out, present = self.attend(q.squeeze(0), k.squeeze(0), v.squeeze(0), past, mask)
        return self.wo(out), present


class SwiGlu(nn.Module):
    """w2(silu(w1 x) * (w3 x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class ParBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ParConfig) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.width, config.norm_eps)
        self.attention = ParAttention(config)
        self.ffn_norm = RmsNorm(config.width, config.norm_eps)
        self.feed_forward = SwiGlu(config.width, config.hidden)

    def forward(
        self, x: Tensor, rotary: Rotary, past: KeyValue | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        out, present = self.attention(self.attention_norm(x), rotary, past, mask)
        x = x + out
        return x + self.feed_forward(self.ffn_norm(x)), present


class ParTransformer(nn.Module):
    """The class and the tokens so far -> logits of the next token, or of the next group.

    Rows under guidance: the conditional ones, then the unconditional ones of the null class
    `num_classes`.
    """

    def __init__(self, config: ParConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_embedding = table("embedding_table", config.num_classes + 1, width)
        self.tok_embeddings = nn.Embedding(config.vocab_size, width)
        self.spe_tok_embeddings = table("special_embeddings", config.special, width)
        self.layers = nn.ModuleList(ParBlock(config) for _ in range(config.depth))
        self.norm = RmsNorm(width, config.norm_eps)
        self.output = nn.Linear(width, config.vocab_size, bias=False)

    def token_table(self) -> Tensor:
        """[rows, C]: the tokens of images, the classes with the null class, the special tokens."""
        classes = cast(nn.Embedding, self.cls_embedding["embedding_table"]).weight
        special = cast(nn.Embedding, self.spe_tok_embeddings["special_embeddings"]).weight
        return torch.cat((self.tok_embeddings.weight, classes, special))

    def rotary_table(self) -> Tensor:
        """[2, 2, 1, 1, length, d/2, 1]: cos and sin, of q, scaled by d**-0.5, and of k."""
        turns = rotary_rows(self.config).permute(2, 0, 1).to(self.output.weight.device)
        both = torch.stack((turns / math.sqrt(self.config.head_dim), turns), dim=1)
        return both[:, :, None, None, :, :, None]

    def rotary(self, position_ids: Tensor) -> Rotary:
        """What turns q and k at positions int64 [n]."""
        cos, sin = self.rotary_table().index_select(4, position_ids).chunk(2, dim=0)
        return cos.squeeze(0), sin.squeeze(0)

    def mask(self) -> Tensor:
        """[length, length], to be added to scores."""
        return group_mask(self.config).to(self.output.weight.device)

    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """int64 [rows], [rows, m], group <= m -> rows of `token_table`, [rows, m + group]."""
        config = self.config
        special = torch.arange(config.special, device=tokens.device) + config.special_tokens
        return torch.cat(
            (
                labels.unsqueeze(1) + config.class_tokens,
                tokens[:, : config.group],
                special.expand(tokens.shape[0], -1),
                tokens[:, config.group :],
            ),
            dim=1,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [rows, n], rows of `token_table` -> [rows, n, C]."""
        return F.embedding(tokens, self.token_table())

    def step(
        self,
        x: Tensor,
        rotary: Rotary,
        past: Sequence[KeyValue] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits [rows, n, V] of n positions, and each block's keys and values of P + n.

        x [rows, n, C] as `embed` makes it, `rotary` of its positions. Without a mask all of `past`
        and all of x is visible, which is right for one step of the schedule at a time.
        """
        presents: list[KeyValue] = []
        for i, block in enumerate(self.layers):
            x, present = block(x, rotary, None if past is None else past[i], mask)
            presents.append(present)
        return self.output(self.norm(x)), presents

    def run(self, labels: Tensor, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """All positions at once: labels [rows], tokens [rows, m] -> logits [rows, m + group, V]."""
        sequence = self.sequence(labels, tokens)
        n = sequence.shape[1]
        rotary = self.rotary(torch.arange(n, device=tokens.device))
        return self.step(self.embed(sequence), rotary, mask=self.mask()[:n, :n])

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [rows, length, V] of all tokens of an image.

        tokens [rows, length - group] in the order of generation: the last group is predicted, and
        predicts nothing. A label `num_classes` is the null class.
        """
        return self.run(labels, tokens)[0]


def table(name: str, rows: int, width: int) -> nn.ModuleDict:
    """An embedding under its official name."""
    return nn.ModuleDict({name: nn.Embedding(rows, width)})


def rotary_rows(config: ParConfig) -> Tensor:
    """[length, d/2, 2]: cos and sin of each position's cell; zeros of the class and special tokens.

    The first half of the pairs turns by the cell's row, the other by its column. The zeros are in
    both, cos and sin: such queries and keys become zero, so the queries attend to all alike.
    """
    pairs = config.head_dim // 2
    # In float32, as officially: float64 would turn the last cells by 1e-6 less or more.
    frequencies = 1 / config.rope_base ** (torch.arange(0, pairs, 2).float() / pairs)
    order = torch.from_numpy(generation_order(config.side, config.group))
    cells = torch.stack((order // config.side, order % config.side), dim=1)
    angles = (cells.unsqueeze(2).float() * frequencies).flatten(1)
    turns = torch.stack((angles.cos(), angles.sin()), dim=-1)
    group, none = config.group, torch.zeros(1, pairs, 2)
    rows = (none, turns[:group], none.expand(config.special, -1, -1), turns[group:])
    return torch.cat(rows)[: config.length]


def group_mask(config: ParConfig) -> Tensor:
    """[length, length]: 0 where a position sees another, else -inf.

    A position sees itself and what is before it, from `group` on its whole group as well.
    """
    positions = torch.arange(config.length)
    ends = positions - positions % config.group + config.special
    last = torch.where(positions < config.group, positions, ends)
    return torch.where(positions <= last.unsqueeze(1), 0.0, -torch.inf)
