"""Define the LlamaGen VQ tokenizer of PAR, and load it strictly.

Own modules with the official parameter names; written from the published architecture
(github.com/FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``): the lineage's
blocks under other names, and codes of unit length. Images are [N, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...export.checkpoint.strict import build_strictly
from ..shared.convolution import AttnBlock, Downsample, ResnetBlock, Upsample, group_norm
from ..shared.vq import IMAGE_CHANNELS, VqTokenizer
from ..shared.vq_checkpoint import infer_layout
from .config import LlamagenVqConfig

# The codes that the training used of late; not a part of the model.
USED = "quantize.codebook_used"
NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.conv_blocks.0.res.0.conv1.weight": 4,
    "decoder.conv_blocks.0.res.0.conv1.weight": 4,
    "decoder.conv_out.weight": 4,
    "quant_conv.weight": 4,
    "quantize.embedding.weight": 2,
}


class LlamagenLevel(nn.Module):
    """Run one resolution: residual blocks, attention or none, a resampling or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        count: int,
        attention: bool,
        resample: type[Downsample] | type[Upsample] | None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(in_channels if j == 0 else out_channels, out_channels) for j in range(count)
        )
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(count * attention))
        if resample is Downsample:
            self.downsample = resample(out_channels)
        if resample is Upsample:
            self.upsample = resample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)
    )


class LlamagenEncoder(nn.Module):
    """Encode an image [N, 3, H, W] to features [N, z_channels, H/s, W/s]."""

    def __init__(self, config: LlamagenVqConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        inputs = (config.channels, *widths[:-1])
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config.channels, kernel_size=3, padding=1)
        self.conv_blocks = nn.Sequential(
            *(
                LlamagenLevel(
                    inputs[i],
                    widths[i],
                    config.num_res_blocks,
                    attention=i == last,
                    resample=None if i == last else Downsample,
                )
                for i in range(len(widths))
            )
        )
        self.mid = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.mid(self.conv_blocks(self.conv_in(image)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class LlamagenDecoder(nn.Module):
    """Decode features [N, z_channels, h, w] to an image [N, 3, h*s, w*s], not clamped.

    ``conv_blocks.{n}`` is the n-th level that runs, 0 of the lowest resolution: in the rest of the
    lineage a level's number is its resolution.
    """

    def __init__(self, config: LlamagenVqConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        last = len(widths) - 1
        inputs = (widths[0], *widths[:-1])
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], kernel_size=3, padding=1)
        self.mid = middle(widths[0])
        self.conv_blocks = nn.Sequential(
            *(
                LlamagenLevel(
                    inputs[n],
                    widths[n],
                    config.num_res_blocks + 1,
                    attention=n == 0,
                    resample=None if n == last else Upsample,
                )
                for n in range(len(widths))
            )
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], IMAGE_CHANNELS, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_blocks(self.mid(self.conv_in(z)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class Codebook(nn.Module):
    """Hold the codes, of any length, under their official name."""

    def __init__(self, config: LlamagenVqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)


class LlamagenVq(VqTokenizer):
    """Combine encoder, codebook and decoder, with the names of ``vq_ds16_c2i.pt``.

    Latent vectors and codes have unit length wherever they are used.
    """

    ends: ClassVar[tuple[str, ...]] = (
        "encoder.conv_in",
        "quant_conv",
        "post_quant_conv",
        "decoder.conv_out",
    )

    def __init__(self, config: LlamagenVqConfig) -> None:
        super().__init__()
        self.config: LlamagenVqConfig = config
        self.encoder = LlamagenEncoder(config)
        self.decoder = LlamagenDecoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, kernel_size=1)

    @property
    def codebook(self) -> Tensor:
        return F.normalize(self.quantize.embedding.weight, dim=1)

    def encode(self, image: Tensor) -> Tensor:
        return F.normalize(self.quant_conv(self.encoder(image)), dim=1)

    def reconstruct(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def infer_llamagen_config(tensors: Mapping[str, Tensor], where: str) -> LlamagenVqConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    Raises:
        ExportError: not a LlamaGen VQ, or widths that its norms cannot have.
    """
    layout = infer_layout(
        tensors, NEEDED, "a LlamaGen VQ", where, "use LlamaGen's tokenizer", "conv_blocks", "res"
    )
    vocab_size, latent = tensors["quantize.embedding.weight"].shape
    return LlamagenVqConfig(
        channels=layout.channels,
        channels_mult=layout.channels_mult,
        num_res_blocks=layout.num_res_blocks,
        z_channels=tensors["encoder.conv_out.weight"].shape[0],
        latent_channels=latent,
        vocab_size=vocab_size,
    )


def load_llamagen_vq(tensors: Mapping[str, Tensor], where: str) -> LlamagenVq:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    The statistics of code use, a buffer of the official model, are left out.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_llamagen_config(tensors, where)
    weights = {k: v for k, v in tensors.items() if k != USED}
    return build_strictly(lambda: LlamagenVq(config), weights, where)
