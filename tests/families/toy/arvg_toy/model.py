"""The transformer of a toy: LlamaGen's blocks, one table for tokens and classes, a causal mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arvg_trt.families.shared.llama.model import LlamaBlock, RmsNorm, Rotary
from arvg_trt.families.shared.transformer import KeyValue

EPS, BASE = 1e-5, 100.0


@dataclass(frozen=True)
class ToyConfig:
    """The shapes of a toy, all but `heads` told by its tensors."""

    depth: int
    width: int
    length: int
    num_classes: int
    vocab_size: int
    hidden: int
    heads: int = 2

    @property
    def side(self) -> int:
        return math.isqrt(self.length)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class ToyTransformer(nn.Module):
    """The class and the tokens so far -> logits of the next token."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size + config.num_classes + 1, config.width)
        self.places = nn.Embedding(config.length, config.width)
        shape = config.width, config.heads, config.hidden, EPS
        self.layers = nn.ModuleList(LlamaBlock(*shape) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, EPS)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)

    def rotary(self, position_ids: Tensor) -> Rotary:
        pairs = self.config.head_dim // 2
        angles = position_ids.unsqueeze(1).float() * BASE ** (-torch.arange(pairs) / pairs)
        turns = torch.stack((angles.cos(), angles.sin()))
        both = torch.stack((turns / math.sqrt(self.config.head_dim), turns), dim=1)
        cos, sin = both[:, :, None, None, :, :, None]
        return cos, sin

    def step(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        past: list[KeyValue] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        x = self.table(tokens) + self.places(position_ids)
        rotary, presents = self.rotary(position_ids), []
        for i, block in enumerate(self.layers):
            x, present = block(x, rotary, None if past is None else past[i], mask)
            presents.append(present)
        return self.output(self.norm(x)), presents

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """labels [rows] and all tokens but the last -> logits [rows, length, V]."""
        sequence = torch.cat((labels.unsqueeze(1) + self.config.vocab_size, tokens), dim=1)
        positions = torch.arange(self.config.length)
        mask = torch.where(positions <= positions.unsqueeze(1), 0.0, -torch.inf)
        return self.step(sequence, positions, mask=mask)[0]


class StepGraph(ToyTransformer):
    """One token and what is cached before it -> logits and the caches.

    Layers are the model's own and have the same names, by which the graphs share their scales.
    """

    def __init__(self, model: ToyTransformer) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.table, self.places = model.table, model.places
        self.layers, self.norm, self.output = model.layers, model.norm, model.output
        self.eval()

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        position_ids: Tensor,
        past_key: list[Tensor],
        past_value: list[Tensor],
    ) -> tuple[Tensor, ...]:
        past = list(zip(past_key, past_value, strict=True))
        logits, presents = self.step(tokens, position_ids, past)
        return (logits, *(k for k, _ in presents), *(v for _, v in presents))


def infer(tensors: dict[str, Tensor]) -> ToyConfig:
    """The configuration that the tensors tell."""
    vocab_size, width = tensors["output.weight"].shape
    return ToyConfig(
        depth=1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("layers.")),
        width=width,
        length=len(tensors["places.weight"]),
        num_classes=len(tensors["table.weight"]) - vocab_size - 1,
        vocab_size=vocab_size,
        hidden=len(tensors["layers.0.feed_forward.w1.weight"]),
    )
