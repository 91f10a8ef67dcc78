"""Define the MaskGIT-VQ tokenizer of RAR, and load it strictly.

Own modules with the official parameter names; written from the published architecture
(github.com/bytedance/1d-tokenizer, ``modeling/modules/maskgit_vqgan.py``), which has its own ideas
of the lineage's blocks: convolutions without bias, an odd shortcut, pooling, no attention.
Images are [N, 3, H, W] in [-1, 1] here; the official ones are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ...export.checkpoint.strict import build_strictly
from ..shared.convolution import group_norm
from ..shared.vq import IMAGE_CHANNELS, VqTokenizer
from ..shared.vq_checkpoint import infer_layout
from .config import MaskgitVqConfig

NEEDED = {  # key: axes
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
    "decoder.up.0.block.0.conv1.weight": 4,
    "decoder.conv_out.weight": 4,
    "quantize.embedding.weight": 2,
}


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """Return a 3x3 convolution with TensorFlow's "same" padding, symmetric at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


class MaskgitBlock(nn.Module):
    """Compute h + x or h + shortcut(h), for h = conv2(swish(norm2(conv1(swish(norm1(x)))))).

    Where the widths differ, the 1x1 shortcut takes h, not x, which is not added at all: an
    oversight that the weights were trained with.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, bias=False)
        self.norm2 = group_norm(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)  # type: ignore[no-any-return]


def blocks(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(
        *(MaskgitBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count))
    )


class DownLevel(nn.Module):
    """Run blocks at one resolution, then the mean of 2x2 pixels unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, count: int, last: bool) -> None:
        super().__init__()
        self.block = blocks(in_channels, out_channels, count)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.block(x)
        return h if self.last else F.avg_pool2d(h, kernel_size=2)


class UpLevel(nn.Module):
    """Run blocks at one resolution, then enlarge by nearest neighbour and convolve.

    The first level, of the largest resolution, does not enlarge.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, first: bool) -> None:
        super().__init__()
        self.block = blocks(in_channels, out_channels, count)
        if not first:
            self.upsample_conv = conv3x3(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.block(x)
        if hasattr(self, "upsample_conv"):
            h = self.upsample_conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return h


class MaskgitEncoder(nn.Module):
    """Encode an image [N, 3, H, W] in [0, 1] to a latent [N, C, H/s, W/s]."""

    def __init__(self, config: MaskgitVqConfig) -> None:
        super().__init__()
        widths, count = config.widths, config.num_res_blocks
        inputs = (config.channels, *widths[:-1])
        self.conv_in = conv3x3(IMAGE_CHANNELS, config.channels, bias=False)
        self.down = nn.Sequential(
            *(
                DownLevel(inputs[i], widths[i], count, last=i == len(widths) - 1)
                for i in range(len(widths))
            )
        )
        self.mid = blocks(widths[-1], widths[-1], count)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.mid(self.down(self.conv_in(image)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class MaskgitDecoder(nn.Module):
    """Decode codes [N, C, h, w] to an image [N, 3, h*s, w*s] in [0, 1], not clamped.

    ``up.{i}`` is resolution level i, run from the highest i (lowest resolution) to 0; each level
    has as many blocks as the encoder's.
    """

    def __init__(self, config: MaskgitVqConfig) -> None:
        super().__init__()
        widths, count = config.widths, config.num_res_blocks
        inputs = (*widths[1:], widths[-1])
        self.conv_in = conv3x3(config.latent_channels, widths[-1])
        self.mid = blocks(widths[-1], widths[-1], count)
        self.up = nn.ModuleList(
            UpLevel(inputs[i], widths[i], count, first=i == 0) for i in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3x3(widths[0], IMAGE_CHANNELS)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class Codebook(nn.Module):
    """Hold the codes, under their official name."""

    def __init__(self, config: MaskgitVqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)


class MaskgitVq(VqTokenizer):
    """Combine encoder, codebook and decoder, with the official parameter names.

    They are those of ``maskgit-vqgan-imagenet-f16-256.bin``.
    """

    def __init__(self, config: MaskgitVqConfig) -> None:
        super().__init__()
        self.config: MaskgitVqConfig = config
        self.encoder = MaskgitEncoder(config)
        self.decoder = MaskgitDecoder(config)
        self.quantize = Codebook(config)

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embedding.weight

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image * 0.5 + 0.5)  # type: ignore[no-any-return]

    def reconstruct(self, latent: Tensor) -> Tensor:
        return self.decoder(latent) * 2 - 1  # type: ignore[no-any-return]


def infer_maskgit_config(tensors: Mapping[str, Tensor], where: str) -> MaskgitVqConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    Raises:
        ExportError: not a MaskGIT-VQ, or widths that its norms cannot have.
    """
    layout = infer_layout(tensors, NEEDED, "a MaskGIT-VQ", where, "use RAR's tokenizer")
    vocab_size, latent = tensors["quantize.embedding.weight"].shape
    return MaskgitVqConfig(
        channels=layout.channels,
        channels_mult=layout.channels_mult,
        num_res_blocks=layout.num_res_blocks,
        latent_channels=latent,
        vocab_size=vocab_size,
    )


def load_maskgit_vq(tensors: Mapping[str, Tensor], where: str) -> MaskgitVq:
    """Return a float32 model in eval mode with a checkpoint's tensors, loaded strictly.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_maskgit_config(tensors, where)
    return build_strictly(lambda: MaskgitVq(config), tensors, where)
