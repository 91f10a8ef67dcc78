"""The RAR transformer (Yu et al. 2024): one image token after another, in raster order.

Parameter names are the official ones, so a published ``state_dict`` loads with ``strict=True``.
Every position has a modulation of its own, from the class and the position. The permuted orders
of the training are left out.

The sequence is: the cls token (position 0), the class (1), image token i (2 + i). Position 1 + i
predicts token i, and is told so by the target-aware table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.transformer import (
    CachedAttention,
    FeedForward,
    KeyValue,
    causal_mask,
    modulated_norm,
    split_qkv,
    spread_ones,
)
from .config import SPARE_POSITIONS, SPARE_STEPS, RarConfig

CHUNKS = 6  # of a block's modulation: shift, scale, gate of the attention, then of the rest
# What turns scales into gains: LN(x) * (1 + scale) + shift.
ONE_OF_BLOCK = (0.0, 1.0, 0.0, 0.0, 1.0, 0.0)
ONE_OF_HEAD = (1.0, 0.0)  # scale, shift: the reverse of the blocks


class RarAttention(CachedAttention):
    """Self-attention with layer norms, shared by the heads, on q and k."""

    def __init__(self, config: RarConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.proj = nn.Linear(width, width)

    def queries(self, q: Tensor) -> Tensor:
        """[rows, H, n, d], scaled: softmax's d**-0.5 is in them."""
        return self.q_norm(q) * (1 / math.sqrt(q.shape[-1]))  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """[rows, n, C] -> the same, and normalised keys and values of all tokens so far."""
        q, k, v = split_qkv(self.qkv(x), self.heads)
        out, present = self.attend(self.queries(q), self.k_norm(k), v, past, mask)
        return self.proj(out), present


class RarBlock(nn.Module):
    """x + g1 attn(LN1(x) a1 + h1), then x + g2 mlp(LN2(x) a2 + h2); LN with an affine of its own.

    Gates g, gains a and shifts h come from the class and the position.
    """

    def __init__(self, config: RarConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = RarAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = FeedForward(width, config.hidden, "none")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, CHUNKS * width))

    def modulation(self, condition: Tensor) -> Tensor:
        """[rows, n, C] -> [rows, n, 6C], gains in the place of scales."""
        rows: Tensor = self.adaLN_modulation(condition)
        return rows + spread_ones(ONE_OF_BLOCK, rows)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        past: KeyValue | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x [rows, n, C], modulation [rows, n, 6C] as `modulation` makes it."""
        shift1, gain1, gate1, shift2, gain2, gate2 = modulation.chunk(CHUNKS, dim=2)
        out, present = self.attn(self.norm1(x) * gain1 + shift1, past, mask)
        x = x + out * gate1
        return x + self.mlp(self.norm2(x) * gain2 + shift2) * gate2, present


class HeadModulation(nn.Module):
    """Gain and shift of the norm before the head, from the class and the position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, condition: Tensor) -> Tensor:
        """[rows, n, C] -> [rows, n, 2C]."""
        rows: Tensor = self.adaLN_modulation(condition)
        return rows + spread_ones(ONE_OF_HEAD, rows)


class RarTransformer(nn.Module):
    """The class and the tokens so far -> logits of the next token.

    Rows under guidance: the conditional ones, then the unconditional ones of the null class
    `num_classes`.
    """

    def __init__(self, config: RarConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.embeddings = nn.Embedding(config.rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.length + SPARE_POSITIONS, width))
        self.target_aware_pos_embed = nn.Parameter(torch.empty_like(self.pos_embed))
        steps = config.length + SPARE_STEPS
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, steps, width))
        self.blocks = nn.ModuleList(RarBlock(config) for _ in range(config.depth))
        self.adaln_before_head = HeadModulation(width)
        self.lm_head = nn.Linear(width, config.vocab_size)
        tables = (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings)
        for table in (self.embeddings.weight, *tables):
            nn.init.trunc_normal_(table, std=0.02)

    def token_table(self) -> Tensor:
        """[rows + 1, C]: the embedding, and the cls token as its last row."""
        return torch.cat((self.embeddings.weight, self.cls_token[0]))

    def position_table(self) -> Tensor:
        """[positions, C]: what each position gets added for its place and its target's."""
        end = self.config.positions
        targets = F.pad(self.target_aware_pos_embed[0, 2 : end + 1], (0, 0, 1, 0))
        return self.pos_embed[0, :end] + targets

    def step_table(self) -> Tensor:
        """[positions, C]: what is added to the class to modulate a position."""
        return self.timesteps_embeddings[0, : self.config.positions]

    def prefix(self, labels: Tensor) -> Tensor:
        """int64 [rows] -> the first two entries of the sequence, int64 [rows, 2]: cls, class."""
        cls = torch.full_like(labels, self.config.rows)
        return torch.stack((cls, labels + self.config.class_tokens), dim=1)

    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """int64 [rows], [rows, n] -> rows of `token_table`, int64 [rows, 2 + n]."""
        return torch.cat((self.prefix(labels), tokens), dim=1)

    def conditions(self, labels: Tensor, position_ids: Tensor) -> Tensor:
        """labels [rows], positions int64 [n] -> what modulates them, [rows, n, C]."""
        classes = F.embedding(labels + self.config.class_tokens, self.token_table())
        return classes.unsqueeze(1) + F.embedding(position_ids, self.step_table())

    def modulations(self, condition: Tensor) -> Iterable[Tensor]:
        """Block by block, [rows, n, 6C]: all at once are larger than the rest of a pass."""
        return (block.modulation(condition) for block in self.blocks)  # type: ignore[operator]

    def embed(self, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """tokens int64 [rows, n], rows of `token_table`, at positions [n] -> [rows, n, C]."""
        placed = F.embedding(position_ids, self.position_table())
        return F.embedding(tokens, self.token_table()) + placed

    def step(
        self,
        x: Tensor,
        modulations: Iterable[Tensor],
        head_modulation: Tensor,
        past: Sequence[KeyValue] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits [rows, n, V] of n positions, and each block's keys and values of P + n.

        x [rows, n, C] as `embed` makes it, `modulations` block by block [rows, n, 6C], of the
        head [rows, n, 2C]. Without a mask all of `past` and of x is visible.
        """
        presents: list[KeyValue] = []
        for i, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            x, present = block(x, modulation, None if past is None else past[i], mask)
            presents.append(present)
        gain, shift = head_modulation.chunk(2, dim=2)
        return self.lm_head(modulated_norm(x, gain, shift, self.config.norm_eps)), presents

    def run(self, labels: Tensor, tokens: Tensor) -> tuple[Tensor, list[KeyValue]]:
        """All positions at once: labels [rows], tokens [rows, n] -> logits [rows, 2 + n, V].

        The first logits, the cls token's, predict nothing; entry 1 + i predicts token i.
        """
        sequence = self.sequence(labels, tokens)
        position_ids = torch.arange(sequence.shape[1], device=tokens.device)
        condition = self.conditions(labels, position_ids)
        x = self.embed(sequence, position_ids)
        return self.step(
            x,
            self.modulations(condition),
            self.adaln_before_head(condition),
            mask=causal_mask(position_ids, sequence.shape[1], x.dtype),
        )

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [rows, 1 + n, V] of tokens 0 to n, from n of them, [rows, n]."""
        # The head runs at position 0 too, so that its positions are those of a step.
        return self.run(labels, tokens)[0][:, 1:]
