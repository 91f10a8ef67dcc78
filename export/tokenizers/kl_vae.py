"""MAR's autoencoder, of latent diffusion's KL kind, and its strict loading.

Own modules with the official parameter names; written from the published architecture
(github.com/LTH14/mar, ``models/vae.py``). The encoder attends at its lowest resolution and in the
middle, the decoder in the middle alone. Images are [N, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ..strict import count_items, load_strictly, require_needed
from .blocks import AttnBlock
from .kl_vae_config import KlVaeConfig
from .vq_blocks import VqDecoder, VqEncoder, require_widths

LOG_VARIANCE = (-30.0, 20.0)  # what it is kept within
NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
    "decoder.conv_out.weight": 4,
    "quant_conv.weight": 4,
    "post_quant_conv.weight": 4,
}


class KlVae(nn.Module):
    """The whole model, with the parameter names of ``kl16.ckpt``."""

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__()
        self.config = config
        latent, blocks = config.latent_channels, config.num_res_blocks
        self.encoder = VqEncoder(config.channels, config.widths, blocks, 2 * latent, AttnBlock)
        self.decoder = VqDecoder(config.widths, blocks, latent, AttnBlock, level_attention=False)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(latent, latent, kernel_size=1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] in [-1, 1] -> mean and log variance of the latent, each [N, C, h, w]."""
        mean, spread = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, spread.clamp(*LOG_VARIANCE)

    def encode(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> latent [N, C, h, w]: its mean."""
        return self.moments(image)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """[N, C, h, w] -> image [N, 3, H, W], not clamped."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def infer_kl_vae_config(tensors: Mapping[str, Tensor], where: str) -> KlVaeConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    Raises:
        ExportError: not a KL autoencoder, or widths that its norms cannot have.
    """
    levels = count_items(tensors, r"encoder\.down\.(\d+)\.")
    lasts = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(levels)]
    require_needed(tensors, NEEDED | dict.fromkeys(lasts, 4), "a KL autoencoder", where)
    if "quantize.embedding.weight" in tensors:
        raise ExportError(
            "is a tokenizer with a codebook, not a KL autoencoder",
            where=where,
            do="use MAR's kl16.ckpt",
        )
    channels, colours = tensors["encoder.conv_in.weight"].shape[:2]
    widths = [tensors[key].shape[0] for key in lasts]
    require_widths(channels, widths, colours, where, do="use MAR's kl16.ckpt")
    return KlVaeConfig(
        channels=channels,
        channels_mult=tuple(width // channels for width in widths),
        num_res_blocks=count_items(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=tensors["post_quant_conv.weight"].shape[0],
    )


def load_kl_vae(tensors: Mapping[str, Tensor], where: str) -> KlVae:
    """A float32 model in eval mode from a checkpoint's tensors, loaded strictly.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_kl_vae_config(tensors, where)
    with torch.device("meta"):
        model = KlVae(config)
    load_strictly(model, tensors, where)
    return model
