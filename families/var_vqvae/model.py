"""Define VAR's tokenizer, a multi-scale residual VQVAE, and load it strictly.

Own modules with the official parameter names; written from the published architecture
(github.com/FoundationVision/VAR, ``models/basic_vae.py``, ``models/quant.py``).
Images are [N, 3, H, H] in [-1, 1], H = config.image_size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...export.checkpoint.strict import count_items, load_strictly, locating
from ..shared.convolution import FusedAttnBlock
from ..shared.vq import VqDecoder, VqEncoder
from ..shared.vq_checkpoint import infer_layout
from .config import PATCH_NUMS_256, VarVqvaeConfig
from .quantizer import MultiScaleQuantizer

HITS = "quantize.ema_vocab_hit_SV"
NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "decoder.conv_out.weight": 4,
    "quant_conv.weight": 4,
    "quantize.embedding.weight": 2,
    "encoder.down.0.block.0.conv1.weight": 4,
    "quantize.quant_resi.qresi_ls.0.weight": 4,
}


class VarVqvae(nn.Module):
    """Combine encoder, quantizer and decoder, with the names of ``vae_ch160v4096z32.pth``."""

    def __init__(self, config: VarVqvaeConfig) -> None:
        super().__init__()
        self.config = config
        latent, kernel = config.latent_channels, config.quant_conv_kernel
        self.encoder = VqEncoder(
            config.channels, config.widths, config.num_res_blocks, latent, FusedAttnBlock
        )
        self.decoder = VqDecoder(config.widths, config.num_res_blocks, latent, FusedAttnBlock)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(latent, latent, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(latent, latent, kernel, padding=kernel // 2)

    def encode(self, image: Tensor) -> Tensor:
        """Return the latent [N, C, h, h] of an image [N, 3, H, H], before quantization."""
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image [N, 3, H, H], not clamped, of the sum of all scales' maps."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def infer_vqvae_config(
    tensors: Mapping[str, Tensor], where: str, patch_nums: Sequence[int] = PATCH_NUMS_256
) -> VarVqvaeConfig:
    """Return the configuration of a checkpoint's keys, its shapes and `patch_nums`.

    Raises:
        ExportError: not VAR's VQVAE, or widths that its norms cannot have.
    """
    layout = infer_layout(tensors, NEEDED, "VAR's VQVAE", where, "use VAR's VQVAE")
    vocab_size, latent = tensors["quantize.embedding.weight"].shape
    with locating(where):
        return VarVqvaeConfig(
            channels=layout.channels,
            channels_mult=layout.channels_mult,
            num_res_blocks=layout.num_res_blocks,
            latent_channels=latent,
            vocab_size=vocab_size,
            patch_nums=tuple(patch_nums),
            phis=count_items(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.weight"),
            quant_conv_kernel=tensors["quant_conv.weight"].shape[-1],
        )


def load_var_vqvae(
    tensors: Mapping[str, Tensor], where: str, patch_nums: Sequence[int] = PATCH_NUMS_256
) -> VarVqvae:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    The statistics of code use, a buffer, may be of another number of scales than `patch_nums`, or
    absent: like the official loader, this one then begins them anew.

    Raises:
        ExportError: missing, extra or misshapen keys (named), weights that are not plain floats,
            another model.
    """
    config = infer_vqvae_config(tensors, where, patch_nums)
    wanted = (len(config.patch_nums), config.vocab_size)
    hits = tensors.get(HITS)
    if hits is None or (
        hits.ndim == 2 and hits.shape[0] != wanted[0] and hits.shape[1] == wanted[1]
    ):
        tensors = {**tensors, HITS: torch.zeros(wanted)}
    with torch.device("meta"):
        model = VarVqvae(config)
    model.quantize.make_resizes()  # constants that no checkpoint brings
    load_strictly(model, tensors, where)
    return model
