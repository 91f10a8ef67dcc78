"""The LlamaGen transformer (Sun et al. 2024), class-conditional: one token after another.

Positions of the sequence: the class (0), image token i in raster order (1 + i). Position i predicts
token i from what is before it and itself; the last token is never fed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..shared.llama.config import LlamaConfig
from ..shared.llama.model import LlamaTransformer, cell_rotations, no_rotation, official_tables
from ..shared.transformer import causal_mask


class LlamagenTransformer(LlamaTransformer):
    """The class and the tokens so far -> logits of the next token."""

    at_once = 1

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, official_tables(config))

    @property
    def shown(self) -> int:
        """All tokens but the last."""
        return self.config.length - 1

    def rotations(self) -> Tensor:
        """Return cos and sin at every position, [length, d/2, 2]; the class has no cell."""
        cells = cell_rotations(self.config, np.arange(self.shown))
        return torch.cat((no_rotation(self.config, 1), cells))

    def mask(self) -> Tensor:
        """[length, length], to be added to scores: a position sees itself and what is before it."""
        weight = self.output.weight
        positions = torch.arange(self.config.length, device=weight.device)
        return causal_mask(positions, self.config.length, weight.dtype)

    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """int64 [rows], [rows, m] -> rows of `token_table`, [rows, 1 + m]."""
        return torch.cat((labels.unsqueeze(1) + self.config.class_tokens, tokens), dim=1)
