"""Define MAR's autoencoder, of latent diffusion's KL kind, and load it strictly.

Own modules with the official parameter names; written from the published architecture
(github.com/LTH14/mar, ``models/vae.py``). The encoder attends at its lowest resolution and in the
middle, the decoder in the middle alone. Images are [N, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import ExportError
from ...export.checkpoint.strict import build_strictly
from ..shared.convolution import AttnBlock
from ..shared.vq import VqDecoder, VqEncoder
from ..shared.vq_checkpoint import infer_layout
from .config import KlVaeConfig

LOG_VARIANCE = (-30.0, 20.0)  # the logarithm of the variance is clamped to this range
NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
    "decoder.conv_out.weight": 4,
    "quant_conv.weight": 4,
    "post_quant_conv.weight": 4,
}


class KlVae(nn.Module):
    """Combine encoder and decoder, with the parameter names of ``kl16.ckpt``."""

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__()
        self.config = config
        latent, blocks = config.latent_channels, config.num_res_blocks
        self.encoder = VqEncoder(config.channels, config.widths, blocks, 2 * latent, AttnBlock)
        self.decoder = VqDecoder(config.widths, blocks, latent, AttnBlock, level_attention=False)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(latent, latent, kernel_size=1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, [N, C, h, w] each.

        The image is [N, 3, H, W] in [-1, 1].
        """
        mean, spread = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, spread.clamp(*LOG_VARIANCE)

    def encode(self, image: Tensor) -> Tensor:
        """Return the mean of the latent, [N, C, h, w], of an image [N, 3, H, W] in [-1, 1]."""
        return self.moments(image)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image [N, 3, H, W], not clamped, of a latent [N, C, h, w]."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def infer_kl_vae_config(tensors: Mapping[str, Tensor], where: str) -> KlVaeConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    Raises:
        ExportError: not a KL autoencoder, or widths that its norms cannot have.
    """
    layout = infer_layout(tensors, NEEDED, "a KL autoencoder", where, "use MAR's kl16.ckpt")
    if "quantize.embedding.weight" in tensors:
        raise ExportError(
            "is a tokenizer with a codebook, not a KL autoencoder",
            where=where,
            do="use MAR's kl16.ckpt",
        )
    return KlVaeConfig(
        channels=layout.channels,
        channels_mult=layout.channels_mult,
        num_res_blocks=layout.num_res_blocks,
        latent_channels=tensors["post_quant_conv.weight"].shape[0],
    )


def load_kl_vae(tensors: Mapping[str, Tensor], where: str) -> KlVae:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_kl_vae_config(tensors, where)
    return build_strictly(lambda: KlVae(config), tensors, where)
