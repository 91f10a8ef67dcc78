"""Define the graphs of a VAR transformer: condition, step, and all positions at once.

Everything constant is computed here, outside the graphs: merged biases, the exponentials of the
attention scales, the sum of the position tables, the one of 1 + scale. Submodules keep their
official paths and share the model's weights, so the graphs' nodes are named after them.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.transformer import ones_of, with_bias, with_ones
from .model import (
    CHUNKS,
    ONE_OF_BLOCK,
    ONE_OF_HEAD,
    HeadModulation,
    VarAttention,
    VarBlock,
    VarTransformer,
)


class GraphAttention(VarAttention):
    """Attend with one bias of 3C for q, k and v, and the learned scale as a factor."""

    factor: Tensor

    def __init__(self, source: VarAttention) -> None:
        nn.Module.__init__(self)
        self.heads = source.heads
        self.mat_qkv = with_bias(source.mat_qkv, source.qkv_bias())
        self.proj = source.proj
        self.scale_mul_1H11 = None
        if source.scale_mul_1H11 is not None:
            self.register_buffer("factor", source.query_scale())
            self.scale_mul_1H11 = self.factor

    def qkv(self, x: Tensor) -> Tensor:
        return self.mat_qkv(x)  # type: ignore[no-any-return]

    def query_scale(self) -> Tensor:
        return self.factor


class BlockRows(nn.Module):
    """Add a block's own rows to the shared modulation, flat, with the one of 1 + scale.

    A module, so that the graph's node has the block's name.
    """

    ada_rows: Tensor

    def __init__(self, ada_gss: Tensor) -> None:
        super().__init__()
        self.register_buffer("ada_rows", (ada_gss + ones_of(ONE_OF_BLOCK, ada_gss)).flatten())

    def forward(self, shared: Tensor) -> Tensor:
        """Return [rows, 6C] with the block's rows added."""
        return shared + self.ada_rows


class GraphBlock(VarBlock):
    """Run a block whose modulation linear has the one of 1 + scale in its bias."""

    def __init__(self, source: VarBlock) -> None:
        nn.Module.__init__(self)
        self.eps = source.eps
        self.attn = GraphAttention(source.attn)
        self.ffn = source.ffn
        if hasattr(source, "ada_gss"):
            self.ada_lin = nn.Sequential(BlockRows(source.ada_gss))
        else:
            linear = cast(nn.Linear, source.ada_lin[1])
            self.ada_lin = nn.Sequential(source.ada_lin[0], with_ones(linear, ONE_OF_BLOCK))

    def modulation(self, condition: Tensor) -> Tensor:
        rows: Tensor = self.ada_lin(condition)
        return rows.reshape(-1, CHUNKS, rows.shape[1] // CHUNKS)


class GraphHeadModulation(HeadModulation):
    """Modulate the head's norm, with its one in the bias."""

    def __init__(self, source: HeadModulation) -> None:
        nn.Module.__init__(self)
        linear = cast(nn.Linear, source.ada_lin[1])
        self.ada_lin = nn.Sequential(source.ada_lin[0], with_ones(linear, ONE_OF_HEAD))

    def forward(self, condition: Tensor) -> Tensor:
        rows: Tensor = self.ada_lin(condition)
        return rows.reshape(-1, 2, rows.shape[1] // 2)


class GraphTransformer(VarTransformer):
    """Run the model with its constants computed; the weights are the model's own."""

    position_table: Tensor

    def __init__(self, model: VarTransformer) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.pos_start = model.pos_start
        self.word_embed = model.word_embed
        self.class_emb = model.class_emb
        self.register_buffer("position_table", model.positions())
        if model.config.shared_aln:
            self.shared_ada_lin = model.shared_ada_lin
        self.blocks = nn.ModuleList(GraphBlock(cast(VarBlock, b)) for b in model.blocks)
        self.head_nm = GraphHeadModulation(model.head_nm)
        self.head = model.head
        self.register_buffer("attn_bias_for_masking", model.attn_bias_for_masking)
        self.eval()

    def positions(self) -> Tensor:
        return self.position_table


class ConditionGraph(GraphTransformer):
    """Compute x, modulation and head_modulation of labels int64 [rows]."""

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return self.condition(labels)


class StepGraph(GraphTransformer):
    """Run n tokens after the keys and values of P >= 0 others; return logits and all caches.

    Empty lists of keys and values stand for P = 0.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        position_ids: Tensor,
        modulation: Tensor,
        head_modulation: Tensor,
        past_key: list[Tensor],
        past_value: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Return logits, the keys of all blocks, the values of all blocks."""
        positions = F.embedding(position_ids, self.position_table)
        past = list(zip(past_key, past_value, strict=True)) or None
        logits, presents = self.step(x, positions, modulation, head_modulation, past)
        return (logits, *(k for k, _ in presents), *(v for _, v in presents))


class TeacherForcedGraph(GraphTransformer):
    """Compute logits of all positions, from labels and teacher-forced features."""
