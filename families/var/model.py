"""Define the VAR transformer (Tian et al. 2024): next-scale prediction with adaLN blocks.

Parameter and buffer names are the official ones, so a published ``state_dict`` loads with
``strict=True``. The official forward drops labels at random even in eval mode; ours never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..shared.transformer import (
    CachedAttention,
    FeedForward,
    KeyValue,
    modulated_norm,
    ones_of,
    split_qkv,
    unit_length,
)
from .config import VarConfig

MAX_LOG_SCALE = math.log(100)
CHUNKS = 6  # in a block's modulation: gate 1, gate 2, scale 1, scale 2, shift 1, shift 2
# Added to the rows to turn scales into gains: LN(x) * (1 + scale) + shift.
ONE_OF_BLOCK = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
ONE_OF_HEAD = (1.0, 0.0)


class VarAttention(CachedAttention):
    """Attend with unit-length q and k and a learned scale per head, or a fixed scale.

    The key's bias is zero: `zero_k_bias` is a buffer of the official modules.
    """

    scale_mul_1H11: Tensor | None
    zero_k_bias: Tensor

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = (
            nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
            if config.attn_l2_norm
            else None
        )
        self.proj = nn.Linear(width, width)

    def qkv_bias(self) -> Tensor:
        return torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))

    def qkv(self, x: Tensor) -> Tensor:
        return self.mat_qkv(x) + self.qkv_bias()  # type: ignore[no-any-return]

    def query_scale(self) -> Tensor:
        """Return exp(min(scale_mul, ln 100)), [1, H, 1, 1]; the softmax has scale 1."""
        assert self.scale_mul_1H11 is not None
        return self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()

    def forward(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """Return [rows, n, C], and the keys and values of all tokens so far.

        Keys have unit length.
        """
        q, k, v = split_qkv(self.qkv(x), self.heads)
        if self.scale_mul_1H11 is None:
            q = q * (0.25 / math.sqrt(q.shape[-1]))
        else:
            q, k = unit_length(q) * self.query_scale(), unit_length(k)
        out, present = self.attend(q, k, v, past, mask)
        return self.proj(out), present


class VarBlock(nn.Module):
    """Compute x + g1 attn(LN(x) a1 + h1), then x + g2 ffn(LN(x) a2 + h2).

    Gates g, gains a and shifts h come from the condition.
    """

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.norm_eps
        self.attn = VarAttention(config)
        self.ffn = FeedForward(width, config.hidden, "tanh")
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, CHUNKS, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, CHUNKS * width))

    def modulation(self, condition: Tensor) -> Tensor:
        """Return the modulation [rows, 6, C], with gains instead of scales.

        `condition` is [rows, C], or with shared adaLN the rows [rows, 6C] common to all blocks.
        """
        if hasattr(self, "ada_gss"):
            rows = condition + self.ada_gss.flatten()
        else:
            rows = self.ada_lin(condition)
        rows = rows.reshape(-1, CHUNKS, rows.shape[1] // CHUNKS)
        return rows + ones_of(ONE_OF_BLOCK, rows)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        past: KeyValue | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Return the block's output for x [rows, n, C], modulation [rows, 6, C], and caches."""
        gate1, gate2, gain1, gain2, shift1, shift2 = modulation.chunk(CHUNKS, dim=1)
        out, present = self.attn(modulated_norm(x, gain1, shift1, self.eps), past, mask)
        x = x + out * gate1
        return x + self.ffn(modulated_norm(x, gain2, shift2, self.eps)) * gate2, present


class HeadModulation(nn.Module):
    """Compute gain and shift of the norm before the head, from the raw class embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, condition: Tensor) -> Tensor:
        """Return [rows, 2, C] of the embedding [rows, C]."""
        rows: Tensor = self.ada_lin(condition)
        rows = rows.reshape(-1, 2, rows.shape[1] // 2)
        return rows + ones_of(ONE_OF_HEAD, rows)


class VarTransformer(nn.Module):
    """Predict the logits of the next token map from class and token maps so far.

    Rows under guidance: the conditional ones, then the unconditional ones of the null class
    `num_classes`.
    """

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.config = config
        width, length = config.width, config.length
        self.pos_start = nn.Parameter(torch.empty(1, config.first_length, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, length, width))
        self.word_embed = nn.Linear(config.latent_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.lvl_embed = nn.Embedding(len(config.patch_nums), width)
        for table in (
            self.pos_start,
            self.pos_1LC,
            self.class_emb.weight,
            self.lvl_embed.weight,
        ):
            nn.init.trunc_normal_(table, std=math.sqrt(1 / width / 3))
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, CHUNKS * width))
        self.blocks = nn.ModuleList(VarBlock(config) for _ in range(config.depth))
        self.head_nm = HeadModulation(width)
        self.head = nn.Linear(width, config.vocab_size)
        self.register_buffer("lvl_1L", official_levels(config))
        self.register_buffer("attn_bias_for_masking", official_mask(config))

    def positions(self) -> Tensor:
        """Return what every token gets added for its scale and place, [L, C]."""
        return self.lvl_embed(self.lvl_1L[0]) + self.pos_1LC[0]  # type: ignore[no-any-return]

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is constant over the steps of an image, from labels [rows].

        First input [rows, first, C] without positions, modulation [rows, depth, 6, C] with gains
        in the place of scales, gain and shift of the head's norm [rows, 2, C].
        """
        embedded: Tensor = self.class_emb(labels)
        source = embedded
        if self.config.shared_aln:
            source = self.shared_ada_lin(embedded)
        rows = torch.stack(
            [cast(VarBlock, block).modulation(source) for block in self.blocks], dim=1
        )
        start = embedded.unsqueeze(1) + self.pos_start
        return start, rows, self.head_nm(embedded)

    def step(
        self,
        x: Tensor,
        positions: Tensor,
        modulation: Tensor,
        head_modulation: Tensor,
        past: Sequence[KeyValue] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Return logits [rows, n, V] of n tokens, and caches of P + n tokens per block.

        x [rows, n, C] comes without positions, which are [n, C]. Without a mask all of `past`
        and all of x is visible, which is right for one scale at a time.
        """
        x = x + positions
        presents: list[KeyValue] = []
        for i, block in enumerate(self.blocks):
            x, present = block(x, modulation[:, i], None if past is None else past[i], mask)
            presents.append(present)
        return self.logits(x, head_modulation), presents

    def logits(self, x: Tensor, head_modulation: Tensor) -> Tensor:
        """Return logits [rows, n, V] of the last block's output."""
        gain, shift = head_modulation.chunk(2, dim=1)
        out: Tensor = self.head(modulated_norm(x, gain, shift, self.config.norm_eps))
        return out

    def forward(self, labels: Tensor, features: Tensor) -> Tensor:
        """Return teacher-forced logits [rows, L, V] of all scales at once, block-causal.

        `features` [rows, L - first, 32] are, for each scale but the first, the f_hat of the scales
        before it, area-interpolated to its size.
        """
        start, modulation, head_modulation = self.condition(labels)
        x = torch.cat((start, self.word_embed(features)), dim=1)
        logits, _ = self.step(
            x,
            self.positions(),
            modulation,
            head_modulation,
            mask=self.attn_bias_for_masking,
        )
        return logits


def official_levels(config: VarConfig) -> Tensor:
    """Return the scale of each token, int64 [1, L]."""
    levels = [torch.full((p * p,), k) for k, p in enumerate(config.patch_nums)]
    return torch.cat(levels).unsqueeze(0)


def official_mask(config: VarConfig) -> Tensor:
    """Return the mask [1, 1, L, L]: 0 for tokens of its own or an earlier scale, else -inf."""
    levels = official_levels(config)[0]
    visible = levels[:, None] >= levels[None, :]
    return torch.where(visible, 0.0, -torch.inf)[None, None]
