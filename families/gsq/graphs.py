"""Define the graphs of a GSQ tokenizer: image to codes, and back.

Everything constant is computed here, outside the graphs: the codes as they are compared, their
lengths, the order of channels before each depth-to-space. Submodules keep their official paths, so
the graphs' nodes are named after them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..shared.vq import code_scores
from ..shared.vq_graphs import DECIDES, FIRST_OR_LAST, TokenizerGraphs, VqGraph
from .blocks import AdaptiveNorm, DepthToSpace
from .model import PART, GsqDecoder, GsqTokenizer

CONDITION = "two numbers a channel from the statistics of the whole latent"


class CodeSearch(nn.Module):
    """Find the nearest row of `table` [V, d]: [..., d] -> int64 [...].

    It computes what `nearest_in_parts` does. Each part is one linear, with the codes' lengths in
    its bias, and an arg-max.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(code_scores(part) for part in torch.split(table, PART))

    def forward(self, vectors: Tensor) -> Tensor:
        first, *others = self.parts
        scores: Tensor = first(vectors)
        codes = scores.argmax(dim=-1)
        if not others:
            return codes
        best = scores.amax(dim=-1)
        for number, part in enumerate(others, start=1):
            scores = part(vectors)
            score = scores.amax(dim=-1)
            codes = torch.where(score > best, scores.argmax(dim=-1) + number * PART, codes)
            best = torch.maximum(score, best)
        return codes


class GsqEncoderGraph(VqGraph):
    """Encode an image to indices int32 [N, h, w] or [N, h, w, G], and latent [N, D, h, w]."""

    def __init__(self, model: GsqTokenizer) -> None:
        super().__init__(model)
        self.encode = model.encode
        self.vectors = model.quantizers.vectors
        self.single = model.config.groups == 1
        self.nearest = CodeSearch(model.quantizers.table().detach())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encode(image)
        vectors = self.vectors(latent)
        codes: Tensor = self.nearest(vectors.squeeze(-2) if self.single else vectors)
        return codes.int(), latent


class GsqDecoderGraph(nn.Module):
    """Decode indices int32, as the encoder gives them, to an image [N, 3, H, W]."""

    def __init__(self, model: GsqTokenizer) -> None:
        super().__init__()
        self.decoder = FoldedDecoder(model.decoder)
        self.quantizers = model.quantizers

    def forward(self, indices: Tensor) -> Tensor:
        return self.decoder(self.quantizers.lookup(indices))  # type: ignore[no-any-return]


class FoldedDecoder(GsqDecoder):
    """Decode with depth-to-spaces and adaptive norms that are single nodes of a graph."""

    def __init__(self, source: GsqDecoder) -> None:
        nn.Module.__init__(self)
        self.conv_in, self.final_layers = source.conv_in, source.final_layers
        self.blocks = nn.ModuleList(
            block.folded() if isinstance(block, (DepthToSpace, AdaptiveNorm)) else block
            for block in source.blocks
        )


def gsq_graphs(model: GsqTokenizer) -> TokenizerGraphs:
    encoder, decoder = GsqEncoderGraph(model), GsqDecoderGraph(model)
    searches = [f"nearest.parts.{k}" for k in range(len(encoder.nearest.parts))]
    adaptive = [
        f"decoder.blocks.{k}.{linear}"
        for k, block in enumerate(model.decoder.blocks)
        if isinstance(block, AdaptiveNorm)
        for linear in ("gamma", "beta")
    ]
    first, last = (dict.fromkeys(half, FIRST_OR_LAST) for half in (model.ends[:2], model.ends[2:]))
    return TokenizerGraphs(
        encoder=encoder,
        decoder=decoder,
        encoder_excluded=first | dict.fromkeys(searches, DECIDES),
        decoder_excluded=last | dict.fromkeys(adaptive, CONDITION),
        groups=model.config.groups,
    )
