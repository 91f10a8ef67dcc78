"""Define the tokenizers of the minis: their sizes, and what is special in each training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.gsq.config import GsqConfig
from ..families.gsq.model import GsqTokenizer
from ..families.kl_vae.config import KlVaeConfig
from ..families.kl_vae.model import KlVae
from ..families.llamagen_vq.config import LlamagenVqConfig
from ..families.llamagen_vq.model import LlamagenVq
from ..families.maskgit_vq.config import MaskgitVqConfig
from ..families.maskgit_vq.model import MaskgitVq
from ..families.shared.vq import VqTokenizer
from ..families.var_vqvae.config import VarVqvaeConfig
from ..families.var_vqvae.model import VarVqvae
from ..families.var_vqvae.quantizer import MultiScaleQuantizer

COMMITMENT = 0.25
HITS_DECAY = 0.99
LENGTH = 0.25  # weight of the squared lengths' distance from 1
DIVERGENCE = 1e-3  # weight of a latent's divergence from the standard normal distribution

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
    latent_channels=8,
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
GSQ = GsqConfig(
    channels=32,
    channels_mult=(1, 1, 2, 3),
    num_res_blocks=1,
    latent_channels=16,
    groups=4,
    vocab_size=512,
)
MAR = KlVaeConfig(channels=32, channels_mult=(1, 1, 2, 3), num_res_blocks=1, latent_channels=8)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Hold the decoder's input, with the encoder's gradient passed through, and its loss.

    With a codebook also how often each code was used [V] and the vectors looked up [N, C].
    """

    through: Tensor
    loss: Tensor
    use: Tensor | None = None
    vectors: Tensor | None = None


def encode(model: Any, images: Tensor) -> Tensor:
    return model.encode(images)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TokenizerMini:
    """Describe the training of one family's tokenizer.

    `encode` makes a latent of images, `quantize` what `decode` makes images of. `codebook` is the
    name of the parameter whose unused rows are revived, where there is one. `config` goes to
    config.json beside the weights: what no shape tells. `perception` is the weight of the features'
    loss, `most_shift` the pixels that pictures are moved by at most.
    """

    file: str
    build: Callable[[], nn.Module]
    quantize: Callable[[Any, Tensor], Quantized]
    decode: Callable[[Any, Tensor], Tensor]
    codebook: str | None
    encode: Callable[[Any, Tensor], Tensor] = encode
    config: Mapping[str, Any] = field(default_factory=dict)
    perception: float = 1.0
    most_shift: int = 4

    def round_trip(self, model: Any, images: Tensor) -> Tensor:
        """Return the reconstruction, not clamped, of [N, 3, H, W] in [-1, 1]."""
        return self.decode(model, self.quantize(model, self.encode(model, images)).through)


def quantize_scales(quantizer: MultiScaleQuantizer, latent: Tensor) -> Quantized:
    """Return the straight-through sum of all scales, with the official loss.

    The loss is the mean over scales of the error of the sum so far. In training the statistics of
    use move on.
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
    """Return straight-through nearest codes of a map, codebook loss and 0.25 of commitment.

    Vectors are drawn to unit length, which a LlamaGen's have: else the three directions of the mean
    colour grow until all codes tell them alone.
    """
    with torch.no_grad():
        codes = model.codes(latent)
    nearest = F.embedding(codes, model.codebook).permute(0, 3, 1, 2)
    fixed = latent.detach()
    loss = F.mse_loss(nearest, fixed) + COMMITMENT * F.mse_loss(nearest.detach(), latent)
    loss = loss + LENGTH * (latent.square().sum(dim=1) - 1).square().mean()
    through = latent + (nearest - latent).detach()
    use = torch.bincount(codes.flatten(), minlength=len(model.codebook)).float()
    return Quantized(through, loss, use, fixed.permute(0, 2, 3, 1).flatten(0, 2))


def quantize_groups(model: GsqTokenizer, latent: Tensor) -> Quantized:
    """Return the nearest code of every group of channels."""
    through, loss = model.quantizers.straight_through(latent)
    with torch.no_grad():
        vectors = model.quantizers.vectors(latent).flatten(0, -2)
        use = torch.bincount(model.codes(latent).flatten(), minlength=len(model.codebook))
    return Quantized(through, loss, use.float(), vectors)


def draw(model: KlVae, moments: Tensor) -> Quantized:
    """Draw a latent in training, else return its mean, from both moments [N, 2C, h, w].

    The loss is the mean divergence of a latent number from the standard normal distribution.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    variance = log_variance.exp()
    divergence = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
    noise = torch.randn_like(mean) if model.training else torch.zeros_like(mean)
    return Quantized(mean + variance.sqrt() * noise, DIVERGENCE * divergence)


MINIS = {
    "var-mini": TokenizerMini(
        "vae.safetensors",
        lambda: VarVqvae(VAR),
        lambda model, latent: quantize_scales(model.quantize, latent),
        VarVqvae.decode,
        "quantize.embedding.weight",
        config={"patch_nums": VAR.patch_nums},
        perception=0.0,
        most_shift=0,
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
    "gsq-mini": TokenizerMini(
        "model.safetensors",
        lambda: GsqTokenizer(GSQ),
        quantize_groups,
        GsqTokenizer.reconstruct,
        "quantizers.codebook.weight",
        perception=0.0,
    ),
    "mar-mini": TokenizerMini(
        "vae.safetensors",
        lambda: KlVae(MAR),
        draw,
        KlVae.decode,
        None,
        encode=lambda model, images: torch.cat(model.moments(images), dim=1),
    ),
}
