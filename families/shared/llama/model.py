"""LlamaGen's transformer (Sun et al. 2024), which PAR shares: RMS norms, SwiGLU, rotated cells.

Parameter names are the official ones, so a published ``state_dict`` loads with ``strict=True``.
Dropout is left out; labels are dropped by whoever trains, for the null class `num_classes`.
Tokens of images, classes and whatever else a family has are rows of one table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..transformer import CachedAttention, KeyValue, joined_heads
from .config import LlamaConfig

Rotary = tuple[Tensor, Tensor]  # cos, sin [2, 1, 1, n, d/2, 1] of q and k at n positions
TOKENS = "tok_embeddings"
CLASSES = "cls_embedding.embedding_table"


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


class LlamaAttention(CachedAttention):
    """Self-attention with rotated q and k; the scale of the scores is in q's rotation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

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


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(width, eps)
        self.attention = LlamaAttention(width, heads)
        self.ffn_norm = RmsNorm(width, eps)
        self.feed_forward = SwiGlu(width, hidden)

    def forward(
        self, x: Tensor, rotary: Rotary, past: KeyValue | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        out, present = self.attention(self.attention_norm(x), rotary, past, mask)
        x = x + out
        return x + self.feed_forward(self.ffn_norm(x)), present


class LlamaLayers(nn.Module, ABC):
    """The blocks, the last norm and the head, over tables that are computed or constant."""

    layers: nn.ModuleList
    norm: RmsNorm
    output: nn.Linear

    @abstractmethod
    def token_table(self) -> Tensor:
        """[rows, C]: the tokens of images, the classes with the null class, and other tokens."""

    @abstractmethod
    def rotary_table(self) -> Tensor:
        """[2, 2, 1, 1, length, d/2, 1]: cos and sin, of q, scaled by d**-0.5, and of k."""

    @abstractmethod
    def mask(self) -> Tensor:
        """Return what is added to scores, [length, length]."""

    @abstractmethod
    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """int64 [rows], [rows, m] -> rows of `token_table`, int64 [rows, n]."""

    def rotary(self, position_ids: Tensor) -> Rotary:
        """Return what turns q and k at positions int64 [n]."""
        cos, sin = self.rotary_table().index_select(4, position_ids).chunk(2, dim=0)
        return cos.squeeze(0), sin.squeeze(0)

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
        """Return logits [rows, n, V] of n positions, and keys and values of P + n of each block.

        x [rows, n, C] as `embed` makes it, `rotary` of its positions. Without a mask all of `past`
        and all of x is visible, which is right for one step of the schedule at a time.
        """
        presents: list[KeyValue] = []
        for i, block in enumerate(self.layers):
            x, present = block(x, rotary, None if past is None else past[i], mask)
            presents.append(present)
        return self.output(self.norm(x)), presents

    def run(self, labels: Tensor, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """All positions at once: labels [rows], tokens [rows, m] -> logits [rows, n, V]."""
        sequence = self.sequence(labels, tokens)
        n = sequence.shape[1]
        rotary = self.rotary(torch.arange(n, device=tokens.device))
        return self.step(self.embed(sequence), rotary, mask=self.mask()[:n, :n])


class LlamaTransformer(LlamaLayers):
    """The class and the tokens so far -> logits of the tokens that follow.

    Rows under guidance: the conditional ones, then the unconditional ones of the null class
    `num_classes`.

    Attributes:
        rows: the embeddings whose rows are the entries of a sequence, in the order of
            `token_table`.
        at_once: the tokens that every step takes; None: steps differ.
    """

    config: LlamaConfig
    rows: ClassVar[tuple[str, ...]] = (TOKENS, CLASSES)
    at_once: ClassVar[int | None] = None

    def __init__(self, config: LlamaConfig, tables: Mapping[str, nn.Module]) -> None:
        """Build the layers behind the embeddings `tables`, which have their official names."""
        super().__init__()
        self.config = config
        for name, module in tables.items():
            self.add_module(name, module)
        shape = config.width, config.heads, config.hidden, config.norm_eps
        self.layers = nn.ModuleList(LlamaBlock(*shape) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    @abstractmethod
    def shown(self) -> int:
        """The tokens of an image that `forward` takes: all but those that are predicted last."""

    @abstractmethod
    def rotations(self) -> Tensor:
        """Return cos and sin at every position, [length, d/2, 2]."""

    def token_table(self) -> Tensor:
        """[rows, C]: the tokens of images, the classes with the null class, and other tokens."""
        return torch.cat([self.get_parameter(f"{name}.weight") for name in self.rows])

    def rotary_table(self) -> Tensor:
        """[2, 2, 1, 1, length, d/2, 1]: cos and sin, of q, scaled by d**-0.5, and of k."""
        turns = self.rotations().permute(2, 0, 1).to(self.output.weight.device)
        both = torch.stack((turns / math.sqrt(self.config.head_dim), turns), dim=1)
        return both[:, :, None, None, :, :, None]

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [rows, length, V] of all tokens of an image.

        tokens [rows, `shown`] in the order of generation: those that are left out are predicted,
        and predict nothing. A label `num_classes` is the null class.
        """
        return self.run(labels, tokens)[0]


def official_tables(config: LlamaConfig) -> dict[str, nn.Module]:
    """Return the embeddings of classes, the null class behind them, and of tokens."""
    classes = table("embedding_table", config.num_classes + 1, config.width)
    return {"cls_embedding": classes, TOKENS: nn.Embedding(config.vocab_size, config.width)}


def table(name: str, rows: int, width: int) -> nn.ModuleDict:
    """Return an embedding under its official name."""
    return nn.ModuleDict({name: nn.Embedding(rows, width)})


def cell_rotations(config: LlamaConfig, order: NDArray[Any]) -> Tensor:
    """Return cos and sin of the raster cells `order` [n], [n, d/2, 2].

    The first half of the pairs turns by the cell's row, the other by its column.
    """
    pairs = config.head_dim // 2
    # In float32, as officially: float64 would turn the last cells by 1e-6 less or more.
    frequencies = 1 / config.rope_base ** (torch.arange(0, pairs, 2).float() / pairs)
    found = torch.from_numpy(order)
    cells = torch.stack((found // config.side, found % config.side), dim=1)
    angles = (cells.unsqueeze(2).float() * frequencies).flatten(1)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def no_rotation(config: LlamaConfig, count: int) -> Tensor:
    """Return cos and sin of `count` positions without a cell, [count, d/2, 2]: zeros.

    They are in both, cos and sin: such queries and keys become zero, so the queries attend to all
    alike.
    """
    return torch.zeros(count, config.head_dim // 2, 2)
