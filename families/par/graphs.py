"""The graphs of a PAR transformer as modules: step, and all positions at once.

Everything constant is computed here, outside the graphs: the table of all tokens, the rotation of
every position with the attention's scale, the mask. Layers are the model's own.
"""

from __future__ import annotations

from torch import Tensor, nn

from .model import ParTransformer


class GraphTransformer(ParTransformer):
    """The model with its constants computed; the weights are the model's own."""

    tokens: Tensor
    turns: Tensor

    def __init__(self, model: ParTransformer) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.register_buffer("tokens", model.token_table())
        self.register_buffer("turns", model.rotary_table().contiguous())
        self.layers, self.norm, self.output = model.layers, model.norm, model.output
        self.eval()

    def token_table(self) -> Tensor:
        return self.tokens

    def rotary_table(self) -> Tensor:
        return self.turns


class StepGraph(GraphTransformer):
    """n tokens and the keys and values of P >= 0 before them -> logits, and those of P + n.

    All n see each other, so they are those of one step: one of the first `group` positions, or a
    group.
    """

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        position_ids: Tensor,
        past_key: list[Tensor],
        past_value: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Outputs: logits, the keys of all blocks, the values of all blocks."""
        past = list(zip(past_key, past_value, strict=True))
        logits, presents = self.step(self.embed(tokens), self.rotary(position_ids), past)
        return (logits, *(k for k, _ in presents), *(v for _, v in presents))


class TeacherForcedGraph(GraphTransformer):
    """labels and all tokens but the last group -> logits of all tokens."""

    visible: Tensor

    def __init__(self, model: ParTransformer) -> None:
        super().__init__(model)
        self.register_buffer("visible", model.mask())

    def mask(self) -> Tensor:
        return self.visible

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.turns  # of all positions
        return cos, sin
