"""The tokenizers of the minis: their sizes, and what each family's training has of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..export.tokenizers.llamagen_vq import LlamagenVq
from ..export.tokenizers.llamagen_vq_config import LlamagenVqConfig
from ..export.tokenizers.maskgit_vq import MaskgitVq
from ..export.tokenizers.maskgit_vq_config import MaskgitVqConfig
from ..export.tokenizers.var_quantizer import MultiScaleQuantizer
from ..export.tokenizers.var_vqvae import VarVqvae
from ..export.tokenizers.var_vqvae_config import VarVqvaeConfig
from ..export.tokenizers.vq_blocks import VqTokenizer

COMMITMENT = 0.25
HITS_DECAY = 0.99

VAR = VarVqvaeConfig(
    channels=32,
    channels_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    latent_channels=16,
    vocab_size=512,
    patch_nums=(1, 2, 3, 4, 5, 6, 8),
)
RAR = MaskgitVqConfig(
    channels=32,
    channels_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    latent_channels=16,
    vocab_size=512,
)
PAR = LlamagenVqConfig(
    channels=32,
    channels_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    z_channels=64,
    latent_channels=8,
    vocab_size=512,
)


@dataclass(frozen=True, slots=True)
class Quantized:
    """What the decoder is given, with the encoder's gradient passed through, and the loss of it.

    Of a codebook also how often each code was used [V] and the vectors looked up [..., C].
    """

    through: Tensor
    loss: Tensor
    use: Tensor
    vectors: Tensor


@dataclass(frozen=True, slots=True)
class TokenizerMini:
    """One family's tokenizer in training.

    `quantize` and `decode` take the model, whose `encode` makes the latent. `codebook` is the
    name of the parameter whose unused rows are revived. `config` goes to config.json beside the
    weights: what no shape tells. `perception` is the weight of the features' loss, `reach` the
    pixels that pictures are moved by at most.
    """

    file: str
    build: Callable[[], nn.Module]
    quantize: Callable[[Any, Tensor], Quantized]
    decode: Callable[[Any, Tensor], Tensor]
    codebook: str
    config: Mapping[str, Any] = field(default_factory=dict)
    perception: float = 1.0
    reach: int = 4

    def round_trip(self, model: Any, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> its reconstruction, not clamped."""
        return self.decode(model, self.quantize(model, model.encode(images)).through)


def quantize_scales(quantizer: MultiScaleQuantizer, latent: Tensor) -> Quantized:
    """Straight-through sum of all scales; the official loss, the mean over scales of the error of
    the sum so far. In training the statistics of use move on.
    """
    fixed = latent.detach()
    total = torch.zeros_like(fixed)
    loss = latent.new_zeros(())
    hits, vectors = [], []
    for scale in range(quantizer.last + 1):
        with torch.no_grad():
            residual = fixed - total
            codes = quantizer.codes(scale, residual)
            vectors.append(quantizer.shrink(scale, residual).flatten(0, 1))
        hits.append(torch.bincount(codes.flatten(), minlength=quantizer.config.vocab_size))
        total = total + quantizer.contribution(scale, codes)
        loss = loss + F.mse_loss(total, fixed) + COMMITMENT * F.mse_loss(total.detach(), latent)
    if quantizer.training:
        quantizer.ema_vocab_hit_SV.lerp_(torch.stack(hits).float(), 1 - HITS_DECAY)
    through = latent + (total - latent).detach()
    use = torch.stack(hits).sum(dim=0).float()
    return Quantized(through, loss / (quantizer.last + 1), use, torch.cat(vectors))


def quantize_map(model: VqTokenizer, latent: Tensor) -> Quantized:
    """Straight-through nearest codes of a map; codebook loss and 0.25 of commitment."""
    with torch.no_grad():
        codes = model.codes(latent)
    found = F.embedding(codes, model.codebook).permute(0, 3, 1, 2)
    fixed = latent.detach()
    loss = F.mse_loss(found, fixed) + COMMITMENT * F.mse_loss(found.detach(), latent)
    through = latent + (found - latent).detach()
    use = torch.bincount(codes.flatten(), minlength=len(model.codebook)).float()
    return Quantized(through, loss, use, fixed.permute(0, 2, 3, 1).flatten(0, 2))


MINIS = {
    "var-mini": TokenizerMini(
        "vae.safetensors",
        lambda: VarVqvae(VAR),
        lambda model, latent: quantize_scales(model.quantize, latent),
        VarVqvae.decode,
        "quantize.embedding.weight",
        {"patch_nums": VAR.patch_nums},
        perception=0.0,
        reach=0,
    ),
    "rar-mini": TokenizerMini(
        "tokenizer.safetensors",
        lambda: MaskgitVq(RAR),
        quantize_map,
        MaskgitVq.reconstruct,
        "quantize.embedding.weight",
    ),
    "par-mini": TokenizerMini(
        "tokenizer.safetensors",
        lambda: LlamagenVq(PAR),
        quantize_map,
        LlamagenVq.reconstruct,
        "quantize.embedding.weight",
    ),
}
