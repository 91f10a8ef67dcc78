"""Define convolutional blocks that the latent-diffusion lineage of tokenizers shares.

Cosmos, VAR, LlamaGen and MAR all descend from the same autoencoder; parameter names are the
official ones, so a published ``state_dict`` loads with ``strict=True``.
Feature maps are [N, C, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32
NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the GroupNorm of the lineage: 32 groups, eps 1e-6, affine."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS, affine=True)


class Downsample(nn.Module):
    """Halve H and W: zero-pad right and bottom by one, then a 3x3 stride-2 convolution.

    Symmetric padding would pass every shape test and shift the sampling grid by one pixel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double H and W by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class ResnetBlock(nn.Module):
    """Compute x + conv2(swish(norm2(conv1(swish(norm1(x)))))), with a 1x1 shortcut if needed.

    The shortcut is there when widths differ.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.nin_shortcut: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h  # type: ignore[no-any-return]


def spatial_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with one head over all H*W positions: three [N, C, H, W] -> [N, C, H, W].

    The scale is C**-0.5, of the full channel count.
    """
    n, c, h, w = q.shape
    # One explicit head: the MatMul-Softmax-MatMul that engines fuse. Scaling q, not the
    # scores, keeps the [H*W, H*W] product in range in half precision.
    queries = (q * c**-0.5).reshape(n, 1, c, h * w).transpose(2, 3)
    keys = k.reshape(n, 1, c, h * w)
    values = v.reshape(n, 1, c, h * w).transpose(2, 3)
    out = torch.softmax(queries @ keys, dim=-1) @ values
    return out.transpose(2, 3).reshape(n, c, h, w)


class AttnBlock(nn.Module):
    """Attend with one head over all H*W positions, scaled by the full channel count."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        xn = self.norm(x)
        return x + self.proj_out(spatial_attention(self.q(xn), self.k(xn), self.v(xn)))  # type: ignore[no-any-return]


class FusedAttnBlock(nn.Module):
    """Attend like `AttnBlock`, with one convolution for q, k and v, in this order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=1)
        return x + self.proj_out(spatial_attention(q, k, v))  # type: ignore[no-any-return]


AttentionKind = type[AttnBlock] | type[FusedAttnBlock]


class MidBlock(nn.Module):
    """Run the bottleneck: block, attention, block."""

    def __init__(self, channels: int, attention: AttentionKind = AttnBlock) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]
