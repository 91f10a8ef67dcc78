"""Define the graphs of a MAR: one pass of both transformers, and one step of the denoiser.

Everything constant is computed here, outside the graphs: the null class as a row of the classes,
the mask token at every place, the embedding of every time, the one of 1 + scale. What the denoiser
makes of a token's z is constant over the steps of the diffusion, so the pass gives it. Submodules
keep their official paths and share the model's weights, so the graphs' nodes are named after them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...runtime.spec import TIMES
from ..shared.transformer import with_ones
from .denoiser import ONE_OF_BLOCK, ONE_OF_LAST, Denoiser, DenoiserBlock, DiffusionLoss, LastLayer
from .model import MarTransformer


class Condition(nn.Module):
    """Apply the denoiser's first layer to z, under its official path."""

    def __init__(self, source: DiffusionLoss) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.cond_embed = source.net.cond_embed

    def forward(self, z: Tensor) -> Tensor:
        return self.net.cond_embed(z)  # type: ignore[no-any-return, operator]


class PassGraph(MarTransformer):
    """Compute z and condition of unknown tokens: [rows, L - N, D] and [rows, L - N, W].

    Inputs are labels [rows], tokens [rows, N, c] and position_ids [rows, L], where the N known
    tokens come first. Outputs are in the order of `position_ids`.
    """

    classes: Tensor
    unknown: Tensor

    def __init__(self, model: MarTransformer) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        for name, child in model.named_children():
            if name not in ("class_emb", "diffloss"):
                self.add_module(name, child)
        self.encoder_pos_embed_learned = model.encoder_pos_embed_learned
        self.decoder_pos_embed_learned = model.decoder_pos_embed_learned
        self.diffusion_pos_embed_learned = model.diffusion_pos_embed_learned
        self.register_buffer("classes", model.class_table())
        self.register_buffer("unknown", model.mask_table())
        self.diffloss = Condition(model.diffloss)  # type: ignore[assignment]
        self.eval()

    def class_table(self) -> Tensor:
        return self.classes

    def mask_table(self) -> Tensor:
        return self.unknown

    def forward(  # type: ignore[override]
        self, labels: Tensor, tokens: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        z = super().forward(labels, tokens, position_ids)
        return z, self.diffloss(z)


def without_silu(source: nn.Sequential, chunks: tuple[float, ...]) -> nn.Sequential:
    """Return a modulation of what SiLU was applied to, that gives gains."""
    return nn.Sequential(nn.Identity(), with_ones(cast(nn.Linear, source[1]), chunks))


class GraphDenoiserBlock(DenoiserBlock):
    """Run a block whose modulation linear has the one of 1 + scale in its bias."""

    def __init__(self, source: DenoiserBlock) -> None:
        nn.Module.__init__(self)
        self.in_ln, self.mlp = source.in_ln, source.mlp
        self.adaLN_modulation = without_silu(source.adaLN_modulation, ONE_OF_BLOCK)

    def modulation(self, condition: Tensor) -> Tensor:
        return self.adaLN_modulation(condition)  # type: ignore[no-any-return]


class GraphLastLayer(LastLayer):
    """Run the last layer, with its one in the bias."""

    def __init__(self, source: LastLayer) -> None:
        nn.Module.__init__(self)
        self.eps, self.linear = source.eps, source.linear
        self.adaLN_modulation = without_silu(source.adaLN_modulation, ONE_OF_LAST)

    def modulation(self, condition: Tensor) -> Tensor:
        return self.adaLN_modulation(condition)  # type: ignore[no-any-return]


class GraphDenoiser(Denoiser):
    """Run the denoiser with a table of times; its SiLU is taken once for all blocks."""

    times: Tensor

    def __init__(self, source: Denoiser) -> None:
        nn.Module.__init__(self)
        self.input_proj = source.input_proj
        self.res_blocks = nn.ModuleList(
            GraphDenoiserBlock(cast(DenoiserBlock, block)) for block in source.res_blocks
        )
        self.final_layer = GraphLastLayer(source.final_layer)
        self.register_buffer("times", source.time_embed(torch.arange(TIMES)))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction for x; `time` is int64 [1], `condition` [m, W]."""
        seen = nn.functional.silu(nn.functional.embedding(time, self.times) + condition)
        return self.denoise(x, seen)


class DenoiseGraph(nn.Module):
    """Predict noise and spread of x [m, c], at time int64 [1], given condition [m, W].

    Both are [m, c]: the noise in x, and where the log of the variance lies, from -1 to 1. The time
    is one of the training's 1000.
    """

    def __init__(self, model: MarTransformer) -> None:
        super().__init__()
        self.diffloss = nn.Module()
        self.diffloss.net = GraphDenoiser(model.diffloss.net)
        self.eval()

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        noise, spread = self.diffloss.net(x, time, condition).chunk(2, dim=1)  # type: ignore[operator]
        return noise, spread
