"""Define the Cosmos image tokenizers (NVIDIA): DI (discrete, FSQ) and CI (continuous).

Own modules with the official parameter names; written from the published architecture
(github.com/NVIDIA/Cosmos-Tokenizer, ``networks/configs.py``, ``modules/layers2d.py``).
Images are [N, 3, H, W] in [-1, 1]; H and W are multiples of the spatial compression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.convolution import Downsample, MidBlock, ResnetBlock, Upsample, group_norm
from .config import CosmosConfig

IMAGE_CHANNELS = 3
FSQ_EPS = 1e-3


def haar_weight(patch_size: int) -> Tensor:
    """Return the sign pattern of the multi-level Haar transform as a convolution kernel.

    Returns [3*p*p, 3, p, p] with entries +-1 and 0: channel ``12*band_2 + 3*band_1 + rgb`` for
    p = 4 (band 1 is the finest level), bands in the order LL, LH, HL, HH. The forward transform
    is this over p*p (DC gain 1), the inverse is its transpose with unit coefficients.
    """
    bands = torch.tensor(
        [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]],
        dtype=torch.float32,
    )
    patterns = torch.ones(1, 1, 1)
    for _ in range(int(math.log2(patch_size))):
        patterns = torch.stack([torch.kron(band, p) for band in bands for p in patterns])
    colours = torch.eye(IMAGE_CHANNELS)
    weight = torch.einsum("bhw,oc->bochw", patterns, colours)
    return weight.reshape(-1, IMAGE_CHANNELS, patch_size, patch_size)


class Patcher(nn.Module):
    """Analyse by Haar wavelets: [N, 3, H, W] -> [N, 3*p*p, H/p, W/p]."""

    weight: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("weight", haar_weight(patch_size) / patch_size**2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=self.patch_size)


class UnPatcher(nn.Module):
    """Synthesize from Haar wavelets: [N, 3*p*p, h, w] -> [N, 3, h*p, w*p]."""

    weight: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("weight", haar_weight(patch_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, stride=self.patch_size)


class Level(nn.Module):
    """Run one resolution: residual blocks, then an optional resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels)
            for i in range(blocks)
        )
        if down:
            self.downsample = Downsample(out_channels)
        if up:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Encode an image [N, 3, H, W] to features [N, z_channels, H/s, W/s]."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = config.widths
        inputs = (config.channels, *widths[:-1])
        self.patcher = Patcher(config.patch_size)
        self.conv_in = nn.Conv2d(
            IMAGE_CHANNELS * config.patch_size**2, config.channels, kernel_size=3, padding=1
        )
        self.down = nn.ModuleList(
            Level(i, o, config.num_res_blocks, down=n < config.num_resamplings)
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = MidBlock(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.patcher(x))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Decode features [N, z_channels, h, w] to an image [N, 3, h*s, w*s], not clamped.

    ``up.{i}`` is resolution level i, run from the highest i (lowest resolution) to 0.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = config.widths
        inputs = (*widths[1:], widths[-1])
        first_up = len(widths) - config.num_resamplings
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = MidBlock(widths[-1])
        self.up = nn.ModuleList(
            Level(i, o, config.num_res_blocks + 1, up=n >= first_up)
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(
            widths[0], IMAGE_CHANNELS * config.patch_size**2, kernel_size=3, padding=1
        )
        self.unpatcher = UnPatcher(config.patch_size)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.unpatcher(self.conv_out(F.silu(self.norm_out(h))))  # type: ignore[no-any-return]


class FSQ(nn.Module):
    """Quantize by finite scalars (arXiv 2309.15505) in the Cosmos variant; no parameters.

    Latents are [N, d, h, w] for d levels, codes lie in [-1, 1], indices are int32 [N, h, w] in
    0 ... prod(levels)-1. Index arithmetic is integer: a half-precision sum over the basis
    (up to 12800) would not be exact.
    """

    levels: Tensor
    half_width: Tensor
    basis: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        as_int = torch.tensor(levels, dtype=torch.int32)
        half_range = (as_int.double() - 1) * (1 + FSQ_EPS) / 2
        offset = torch.where(as_int % 2 == 0, 0.5, 0.0).double()
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), dim=0).int()
        constants = {
            "levels": as_int,
            "half_width": as_int // 2,
            "basis": basis,
            "half_range": half_range.float(),
            "offset": offset.float(),
            "shift": torch.atanh(offset / half_range).float(),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.reshape(1, -1, 1, 1), persistent=False)

    def bound(self, latent: Tensor) -> Tensor:
        """Squash [N, d, h, w] to the open interval that rounds onto the levels."""
        return torch.tanh(latent + self.shift) * self.half_range - self.offset

    def indices(self, latent: Tensor) -> Tensor:
        """Return int32 indices [N, h, w] of a float32 latent [N, d, h, w]."""
        digits = torch.round(self.bound(latent)).int() + self.half_width
        return (digits * self.basis).sum(dim=1, dtype=torch.int32)

    def codes(self, indices: Tensor) -> Tensor:
        """Return codes [N, d, h, w] in [-1, 1] of int32 [N, h, w]; exact in every float type."""
        digits = indices.unsqueeze(1) // self.basis % self.levels
        return (digits - self.half_width).float() / self.half_width.float()

    def straight_through(self, latent: Tensor) -> Tensor:
        """Return codes of `latent` with the gradient of the bounded value, for training."""
        bounded = self.bound(latent)
        rounded = bounded + (torch.round(bounded) - bounded).detach()
        return rounded / self.half_width


class CosmosTokenizer(nn.Module):
    """Combine encoder, quantizer and decoder, with the names of ``autoencoder.jit``."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, kernel_size=1)
        self.quantizer = FSQ(config.levels) if config.discrete else None

    def encode(self, image: Tensor) -> Tensor:
        """Return the latent [N, latent_channels, H/s, W/s] before quantization.

        The image is [N, 3, H, W] in [-1, 1].
        """
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image [N, 3, h*s, w*s] of codes (DI) or of a latent (CI)."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]
