"""The graphs of LlamaGen's transformer as modules: step, and all positions at once.

Everything constant is computed here, outside the graphs: the table of all tokens, the rotation of
every position with the attention's scale, the mask. Layers are the model's own.
"""

from __future__ import annotations

from torch import Tensor, nn

from .model import LlamaLayers, LlamaTransformer, Rotary


class GraphLayers(LlamaLayers):
    """The model with its constants computed; the weights are the model's own."""

    tokens: Tensor
    turns: Tensor

    def __init__(self, model: LlamaTransformer) -> None:
        nn.Module.__init__(self)
        self._sequence, self._mask = model.sequence, model.mask
        self.register_buffer("tokens", model.token_table())
        self.register_buffer("turns", model.rotary_table().contiguous())
        self.layers, self.norm, self.output = model.layers, model.norm, model.output
        self.eval()

    def token_table(self) -> Tensor:
        return self.tokens

    def rotary_table(self) -> Tensor:
        return self.turns

    def mask(self) -> Tensor:
        return self._mask()

    def sequence(self, labels: Tensor, tokens: Tensor) -> Tensor:
        return self._sequence(labels, tokens)


class StepGraph(GraphLayers):
    """n tokens and the keys and values of P >= 0 before them -> logits, and those of P + n.

    All n see each other, so they are those of one step.
    """

    def forward(
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


class TeacherForcedGraph(GraphLayers):
    """labels and the tokens that are shown -> logits of all tokens."""

    visible: Tensor

    def __init__(self, model: LlamaTransformer) -> None:
        super().__init__(model)
        self.register_buffer("visible", model.mask())

    def mask(self) -> Tensor:
        return self.visible

    def rotary(self, position_ids: Tensor) -> Rotary:
        cos, sin = self.turns  # of all positions
        return cos, sin

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        return self.run(labels, tokens)[0]
