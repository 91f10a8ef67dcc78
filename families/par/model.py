"""The PAR transformer (Wang et al. 2024): groups of distant tokens at once, in LlamaGen's blocks.

Positions of the sequence, with n = `group`: the class (0), tokens 0 to n - 1 (1 to n), n - 1
special tokens, tokens n and on (2n and on). Position i predicts token i. The first n positions see
what is before them; from there on each n positions see each other as well, and predict n tokens.
Tokens are in the order of `generation_order`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.llama.model import (
    CLASSES,
    TOKENS,
    LlamaTransformer,
    cell_rotations,
    no_rotation,
    official_tables,
    table,
)
from .config import ParConfig
from .spec import generation_order

SPECIAL = "spe_tok_embeddings.special_embeddings"


class ParTransformer(LlamaTransformer):
    """The class and the tokens so far -> logits of the next token, or of the next group."""

    config: ParConfig
    rows = (TOKENS, CLASSES, SPECIAL)

    def __init__(self, config: ParConfig) -> None:
        special = table("special_embeddings", config.special, config.width)
        super().__init__(config, official_tables(config) | {"spe_tok_embeddings": special})

    @property
    def shown(self) -> int:
        """All tokens but the last group."""
        return self.config.length - self.config.group

    def rotations(self) -> Tensor:
        """Return cos and sin at every position, [length, d/2, 2]."""
        return rotary_rows(self.config)

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


def rotary_rows(config: ParConfig) -> Tensor:
    """[length, d/2, 2]: cos and sin of each position's cell; zeros where there is none."""
    group = config.group
    turns = cell_rotations(config, generation_order(config.side, group))
    class_, special = no_rotation(config, 1), no_rotation(config, config.special)
    return torch.cat((class_, turns[:group], special, turns[group:]))[: config.length]


def group_mask(config: ParConfig) -> Tensor:
    """[length, length]: 0 where a position sees another, else -inf.

    A position sees itself and what is before it, from `group` on its whole group as well.
    """
    positions = torch.arange(config.length)
    ends = positions - positions % config.group + config.special
    last = torch.where(positions < config.group, positions, ends)
    return torch.where(positions <= last.unsqueeze(1), 0.0, -torch.inf)
