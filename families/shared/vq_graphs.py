"""Define the graphs of a tokenizer with one map of codes: image to codes, and back.

Submodules keep their official paths, so the graphs' nodes are named after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .vq import VqTokenizer, code_scores, lookup

FIRST_OR_LAST = "first or last convolution of its half"
DECIDES = "decides codes"


def excluded(model: VqTokenizer) -> dict[str, dict[str, str]]:
    """Return why sites are left out, by their path, of encoder and decoder.

    `ends` lists two of each.
    """
    first, last = (dict.fromkeys(half, FIRST_OR_LAST) for half in (model.ends[:2], model.ends[2:]))
    return {"encoder": first | {"nearest": DECIDES}, "decoder": last}


@dataclass(frozen=True, slots=True)
class TokenizerGraphs:
    """Hold both parts as modules, and why sites stay in high precision, by module path.

    Indices are [N, h, w], or of several `groups` of channels [N, h, w, groups].
    """

    encoder: nn.Module
    decoder: nn.Module
    encoder_excluded: Mapping[str, str]
    decoder_excluded: Mapping[str, str]
    groups: int = 1


class VqGraph(nn.Module):
    """Hold the model's modules under their own names, for its own arithmetic."""

    def __init__(self, model: VqTokenizer) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)


class VqEncoderGraph(VqGraph):
    """Encode an image [N, 3, H, W] to indices int32 [N, h, w] and latent [N, C, h, w].

    The nearest code is one linear, with the codes' lengths in its bias, and an arg-max.
    """

    def __init__(self, model: VqTokenizer) -> None:
        super().__init__(model)
        self.encode = model.encode
        self.nearest = code_scores(model.codebook.detach())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encode(image)
        scores: Tensor = self.nearest(latent.permute(0, 2, 3, 1))
        return scores.argmax(dim=-1).int(), latent


class VqDecoderGraph(VqGraph):
    """Decode indices int32 [N, h, w] to an image [N, 3, H, W], not clamped."""

    codes: Tensor

    def __init__(self, model: VqTokenizer) -> None:
        super().__init__(model)
        self.reconstruct = model.reconstruct
        self.register_buffer("codes", model.codebook.detach())

    def forward(self, indices: Tensor) -> Tensor:
        return self.reconstruct(lookup(indices, self.codes))


def vq_graphs(model: VqTokenizer) -> TokenizerGraphs:
    left_out = excluded(model)
    encoder, decoder = VqEncoderGraph(model), VqDecoderGraph(model)
    return TokenizerGraphs(encoder, decoder, left_out["encoder"], left_out["decoder"])
