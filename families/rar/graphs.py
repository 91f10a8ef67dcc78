"""The graphs of a RAR transformer as modules: condition, step, and all positions at once.

Everything constant is computed here, outside the graphs: the sum of the position tables, the cls
token as a row of the embedding, the attention's scale, the one of 1 + scale. Submodules keep
their official paths and share the model's weights, so the graphs' nodes are named after them.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..shared.transformer import causal_mask, with_ones
from .model import (
    CHUNKS,
    ONE_OF_BLOCK,
    ONE_OF_HEAD,
    HeadModulation,
    RarAttention,
    RarBlock,
    RarTransformer,
)


class GraphAttention(RarAttention):
    """The scale of the scores in the norm of q."""

    def __init__(self, source: RarAttention) -> None:
        nn.Module.__init__(self)
        self.heads = source.heads
        self.qkv, self.proj, self.k_norm = source.qkv, source.proj, source.k_norm
        scale = 1 / math.sqrt(source.q_norm.normalized_shape[0])
        self.q_norm = nn.LayerNorm(source.q_norm.normalized_shape, source.q_norm.eps)
        self.q_norm.weight = nn.Parameter(source.q_norm.weight * scale, requires_grad=False)
        self.q_norm.bias = nn.Parameter(source.q_norm.bias * scale, requires_grad=False)

    def queries(self, q: Tensor) -> Tensor:
        return self.q_norm(q)  # type: ignore[no-any-return]


def modulation_with_ones(source: nn.Sequential, chunks: tuple[float, ...]) -> nn.Sequential:
    return nn.Sequential(source[0], with_ones(cast(nn.Linear, source[1]), chunks))


class GraphBlock(RarBlock):
    """A block whose modulation linear has the one of 1 + scale in its bias."""

    def __init__(self, source: RarBlock) -> None:
        nn.Module.__init__(self)
        self.norm1, self.norm2, self.mlp = source.norm1, source.norm2, source.mlp
        self.attn = GraphAttention(source.attn)
        self.adaLN_modulation = modulation_with_ones(source.adaLN_modulation, ONE_OF_BLOCK)

    def modulation(self, condition: Tensor) -> Tensor:
        return self.adaLN_modulation(condition)  # type: ignore[no-any-return]


class GraphHeadModulation(HeadModulation):
    """The head's, with its one in the bias."""

    def __init__(self, source: HeadModulation) -> None:
        nn.Module.__init__(self)
        self.adaLN_modulation = modulation_with_ones(source.adaLN_modulation, ONE_OF_HEAD)

    def forward(self, condition: Tensor) -> Tensor:
        return self.adaLN_modulation(condition)  # type: ignore[no-any-return]


class GraphTransformer(RarTransformer):
    """The model with its constants computed; the weights are the model's own."""

    tokens: Tensor
    places: Tensor
    steps: Tensor

    def __init__(self, model: RarTransformer) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.register_buffer("tokens", model.token_table())
        self.register_buffer("places", model.position_table())
        self.register_buffer("steps", model.step_table().contiguous())
        self.blocks = nn.ModuleList(GraphBlock(cast(RarBlock, b)) for b in model.blocks)
        self.adaln_before_head = GraphHeadModulation(model.adaln_before_head)
        self.lm_head = model.lm_head
        self.eval()

    def token_table(self) -> Tensor:
        return self.tokens

    def position_table(self) -> Tensor:
        return self.places

    def step_table(self) -> Tensor:
        return self.steps


class ConditionGraph(GraphTransformer):
    """labels int64 [rows], position_ids int64 [n] -> modulation, head_modulation.

    [rows, n, depth, 6, C] and [rows, n, 2, C], gains in the place of scales.
    """

    def forward(self, labels: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        condition = self.conditions(labels, position_ids)
        rows = torch.cat(list(self.modulations(condition)), dim=2)
        head = self.adaln_before_head(condition)
        shape, width = rows.shape[:2], self.config.width
        modulation = rows.reshape(*shape, self.config.depth, CHUNKS, width)
        return modulation, head.reshape(*shape, 2, width)


class StepGraph(GraphTransformer):
    """n tokens and the keys and values of P >= 0 before them -> logits, and those of P + n."""

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        position_ids: Tensor,
        modulation: Tensor,
        head_modulation: Tensor,
        past_key: list[Tensor],
        past_value: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Outputs: logits, the keys of all blocks, the values of all blocks."""
        past = list(zip(past_key, past_value, strict=True))
        mask = causal_mask(position_ids, past_key[0].shape[2] + tokens.shape[1], self.places.dtype)
        logits, presents = self.step(
            self.embed(tokens, position_ids),
            modulation.flatten(2).chunk(self.config.depth, dim=2),
            head_modulation.flatten(2),
            past,
            mask,
        )
        return (logits, *(k for k, _ in presents), *(v for _, v in presents))


class TeacherForcedGraph(GraphTransformer):
    """labels and all tokens but the last -> logits of all tokens."""
