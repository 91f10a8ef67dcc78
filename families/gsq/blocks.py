"""Define the blocks of the GSQ tokenizers, under their official names.

Written from the published architecture (github.com/HelmholtzAI-FZJ/flex_gen,
``flex_gen/autoencoders/flexTokenizer/layers.py``). Feature maps are [N, C, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.convolution import NORM_EPS, NORM_GROUPS

UP = 2  # factor of a resampling


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution padded by one on all sides, also where it halves H and W."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


class GsqBlock(nn.Module):
    """Compute conv(swish(norm(conv(swish(norm(x)))))) + x, with a 1x1 skip if widths differ.

    The norms have PyTorch's own eps, 1e-5.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, in_channels),
            nn.SiLU(),
            conv3x3(in_channels, out_channels),
            nn.GroupNorm(NORM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the official dropout, of probability 0
            conv3x3(out_channels, out_channels),
        )
        same = in_channels == out_channels
        self.skip: nn.Module = (
            nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.skip(x)  # type: ignore[no-any-return]


class GsqDownsample(nn.Module):
    """Halve H and W by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=UP)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class DepthToSpace(nn.Module):
    """Double H and W: a convolution makes four times the channels, four of them 2x2 pixels.

    Channel (2 * dy + dx) * C + c goes to channel c of pixel (dy, dx): ONNX's DCR order, where
    PyTorch's pixel_shuffle takes channel 4 * c + 2 * dy + dx (CRD).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, UP * UP * channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = torch.unflatten(self.conv(x), 1, (UP * UP, -1))
        return F.pixel_shuffle(pixels.transpose(1, 2).flatten(1, 2), UP)

    def folded(self) -> ShuffledConv:
        """Return the same module with the channels' order in the convolution's rows."""
        return ShuffledConv(self.conv)


class ShuffledConv(nn.Module):
    """Compute `DepthToSpace` as one convolution and one pixel_shuffle, for a graph."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        assert source.bias is not None
        with torch.device("meta"):
            self.conv = conv3x3(source.in_channels, source.out_channels)
        for name, rows in (("weight", source.weight), ("bias", source.bias)):
            ordered = torch.unflatten(rows.detach(), 0, (UP * UP, -1)).transpose(0, 1).flatten(0, 1)
            setattr(self.conv, name, nn.Parameter(ordered, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), UP)


class AdaptiveNorm(nn.Module):
    """Normalize groups; scale and shift are linear in statistics of the quantized latent."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS, affine=False)
        self.gamma = nn.Linear(latent_channels, channels)
        self.beta = nn.Linear(latent_channels, channels)

    def forward(self, x: Tensor, deviation: Tensor, mean: Tensor) -> Tensor:
        """Return the norm of x [N, C, H, W]; deviation and mean are [N, D].

        They are those of `latent_statistics`.
        """
        scale, shift = self.gamma(deviation), self.beta(mean)
        return self.gn(x) * scale[..., None, None] + shift[..., None, None]  # type: ignore[no-any-return]

    def folded(self) -> AdaptiveNorm:
        """Return the same module with the constants 1 and 0 that a graph's norm takes."""
        with torch.device("meta"):
            made = AdaptiveNorm(self.gamma.out_features, self.gamma.in_features)
        made.gamma, made.beta = self.gamma, self.beta
        made.gn = nn.GroupNorm(NORM_GROUPS, self.gamma.out_features, eps=NORM_EPS)
        made.gn.requires_grad_(False)
        return made


def latent_statistics(quantized: Tensor) -> tuple[Tensor, Tensor]:
    """Return (deviation, mean) of each image and channel: [N, D, h, w] -> two [N, D].

    The variance is that of a sample, over h * w - 1: it is NaN for a single position.
    """
    positions = quantized.flatten(2)
    return (positions.var(dim=-1) + NORM_EPS).sqrt(), positions.mean(dim=-1)
