"""Define the graphs of VAR's tokenizer: encoder, decoder, lookup, and the update of a step.

Everything constant is computed here, outside the graphs: the halves of phi, the codes' lengths.
Submodules keep their official paths, so the graphs' nodes are named after them.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..shared.vq import code_scores
from .model import VarVqvae
from .quantizer import MultiScaleQuantizer, Phi, PhiList

FIRST_OR_LAST = "first or last convolution of its half"
DECIDES = "decides codes, and an early one that is wrong changes all later ones"
SUMMED = "summed over the scales, for a thousandth of the decoder's work"
RESIZE = "fixed resize"
EMBEDDING = "the embedding of latents, outside the method"


class GraphQuantizer(MultiScaleQuantizer):
    """Quantize with each phi as one convolution and the nearest code as one linear."""

    def __init__(self, source: MultiScaleQuantizer) -> None:
        nn.Module.__init__(self)
        self.config = source.config
        self.embedding = source.embedding
        phis = [phi.folded() for phi in source.quant_resi.qresi_ls if isinstance(phi, Phi)]
        self.quant_resi = PhiList(phis)
        self.up, self.down = source.up, source.down
        self.nearest = code_scores(source.embedding.weight.detach())

    def codes(self, scale: int, residual: Tensor) -> Tensor:
        scores: Tensor = self.nearest(self.shrink(scale, residual))
        return scores.argmax(dim=-1)


class VarEncoderGraph(nn.Module):
    """Encode an image [N, 3, H, H] to indices int32 [N, L] and latent [N, C, h, h]."""

    def __init__(self, model: VarVqvae) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv
        self.quantize = GraphQuantizer(model.quantize)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.quant_conv(self.encoder(image))
        return self.quantize.encode(latent).int(), latent


class VarDecoderGraph(nn.Module):
    """Decode the sum of all scales [N, C, h, h] to an image [N, 3, H, H], not clamped."""

    def __init__(self, model: VarVqvae) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


class VarTokensGraph(nn.Module):
    """Decode the codes of all scales, int32 [N, L], to an image [N, 3, H, H], not clamped."""

    def __init__(self, model: VarVqvae) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv
        self.quantize = GraphQuantizer(model.quantize)

    def forward(self, indices: Tensor) -> Tensor:
        latent = self.quantize.decode(indices)
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


class VarLookupGraph(nn.Module):
    """Look up indices int32 [N, L]: latent [N, C, h, h], features [N, L - p_0**2, C].

    The features are what a transformer is fed with these codes: the `features` of full.onnx.
    """

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.quantize = GraphQuantizer(quantizer)

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantize.decode_with_features(indices)


class VarUpdateGraph(nn.Module):
    """Add a scale's tokens int64 [B, p_k**2] to f_hat [B, C, h, h].

    Outputs are f_hat_next and, but for the last scale, x [B, p_{k+1}**2, width], the transformer's
    input at the next scale without level and position. `word_embed` is the transformer's linear.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, scale: int, word_embed: nn.Linear) -> None:
        super().__init__()
        self.scale = scale
        self.quantize = GraphQuantizer(quantizer)
        self.word_embed = word_embed

    def forward(self, tokens: Tensor, f_hat: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        following = f_hat + self.quantize.contribution(self.scale, tokens)
        if self.scale == self.quantize.last:
            return following
        return following, self.word_embed(self.quantize.shrink(self.scale + 1, following))


def encoder_excluded(quantizer: MultiScaleQuantizer) -> dict[str, str]:
    """Return the sites of encoder.onnx that stay in high precision, with the reason."""
    last, phis = quantizer.last, quantizer.config.phi_of_scale
    return {
        "encoder.conv_in": FIRST_OR_LAST,
        "encoder.conv_out": FIRST_OR_LAST,
        "quant_conv": DECIDES,
        "quantize.nearest": DECIDES,
        **{f"quantize.down.{k}": RESIZE for k in range(last)},
        **{f"quantize.up.{k}": RESIZE for k in range(last)},
        **{phi_path(phis[k]): DECIDES for k in range(last)},
    }


def decoder_excluded() -> dict[str, str]:
    """Return the sites of decoder.onnx that stay in high precision, with the reason."""
    return dict.fromkeys(("post_quant_conv", "decoder.conv_in", "decoder.conv_out"), FIRST_OR_LAST)


def tokens_excluded(quantizer: MultiScaleQuantizer) -> dict[str, str]:
    """Return the sites of a decoder of codes that stay in high precision, with the reason."""
    return {
        **decoder_excluded(),
        **{phi_path(phi): SUMMED for phi in quantizer.config.phi_of_scale},
        **{f"quantize.up.{k}": RESIZE for k in range(quantizer.last)},
    }


def lookup_excluded(quantizer: MultiScaleQuantizer) -> dict[str, str]:
    """Return the sites of lookup.onnx, none of which is quantized, with the reason."""
    last = quantizer.last
    return {
        **{phi_path(phi): SUMMED for phi in quantizer.config.phi_of_scale},
        **{f"quantize.up.{k}": RESIZE for k in range(last)},
        **{f"quantize.down.{k}": RESIZE for k in range(1, last)},
    }


def update_excluded(quantizer: MultiScaleQuantizer, scale: int) -> dict[str, str]:
    """Return the sites of update.{scale}.onnx, none quantized, with the reason."""
    last = quantizer.last
    reasons = {phi_path(quantizer.config.phi_of_scale[scale]): SUMMED}
    if scale < last:
        reasons |= {f"quantize.up.{scale}": RESIZE, "word_embed": EMBEDDING}
    if scale + 1 < last:
        reasons[f"quantize.down.{scale + 1}"] = RESIZE
    return reasons


def phi_path(number: int) -> str:
    return f"quantize.quant_resi.qresi_ls.{number}"
