"""Define what the vector-quantized tokenizers share: encoder, decoder, nearest code.

The lineage's layout without Cosmos' patcher: one resolution per entry of `widths`, resampling
between them, attention at the lowest resolution and in the middle.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import AttentionKind, Downsample, MidBlock, ResnetBlock, Upsample, group_norm

IMAGE_CHANNELS = 3


class VqLevel(nn.Module):
    """Run one resolution: residual blocks, attention or none, a resampling or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        attention: AttentionKind | None = None,
        resample: type[Downsample] | type[Upsample] | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels)
            for i in range(blocks)
        )
        self.attn = nn.ModuleList(attention(out_channels) for _ in range(blocks) if attention)
        if resample is Downsample:
            self.downsample = resample(out_channels)
        if resample is Upsample:
            self.upsample = resample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class VqEncoder(nn.Module):
    """Encode an image [N, 3, H, W] to features [N, z_channels, H/s, W/s], s = 2**(levels - 1)."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        z_channels: int,
        attention: AttentionKind,
    ) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, channels, kernel_size=3, padding=1)
        self.down = nn.ModuleList(
            VqLevel(
                inputs[n],
                widths[n],
                blocks,
                attention=attention if n == last else None,
                resample=None if n == last else Downsample,
            )
            for n in range(len(widths))
        )
        self.mid = MidBlock(widths[-1], attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # type: ignore[no-any-return]


class VqDecoder(nn.Module):
    """Decode features [N, z_channels, h, w] to an image [N, 3, h*s, w*s], not clamped.

    ``up.{i}`` is resolution level i, run from the highest i (lowest resolution) to 0.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        z_channels: int,
        attention: AttentionKind,
        *,
        level_attention: bool = True,
    ) -> None:
        """Attend in the middle, and with `level_attention` at the lowest resolution."""
        super().__init__()
        inputs = (*widths[1:], widths[-1])
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = MidBlock(widths[-1], attention)
        self.up = nn.ModuleList(
            VqLevel(
                inputs[n],
                widths[n],
                blocks + 1,
                attention=attention if level_attention and n == last else None,
                resample=None if n == 0 else Upsample,
            )
            for n in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], IMAGE_CHANNELS, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the code of least Euclidean distance: [..., C], [V, C] -> int64 [...].

    argmin |z - e|^2 = argmax z.e - |e|^2 / 2: without the constant |z|^2, which would only cost
    digits. The lowest index wins a tie.
    """
    return closeness(z, codebook).argmax(dim=-1)


def closeness(z: Tensor, codebook: Tensor) -> Tensor:
    """Return z.e - |e|^2 / 2 of every code, largest for the nearest: [..., V].

    The shapes are [..., C], [V, C] -> [..., V].
    """
    return z @ codebook.T - 0.5 * codebook.square().sum(dim=1)


def code_scores(codebook: Tensor) -> nn.Linear:
    """Return `nearest_code` as a linear [..., C] -> [..., V], whose arg-max it is."""
    scores = nn.Linear(codebook.shape[1], codebook.shape[0], device="meta")
    scores.weight = nn.Parameter(codebook, requires_grad=False)
    lengths = codebook.double().square().sum(dim=1)
    scores.bias = nn.Parameter((-0.5 * lengths).float(), requires_grad=False)
    return scores


def lookup(codes: Tensor, codebook: Tensor) -> Tensor:
    """Return the codebook's rows as [N, C, h, w], of codes [N, h, w] and codebook [V, C]."""
    return channels_first(F.embedding(codes, codebook))


def channels_first(vectors: Tensor) -> Tensor:
    """Return [N, h, w, C] as [N, C, h, w], also in memory.

    PyTorch takes any other order as channels-last, in which its group norms of large maps add
    with far fewer digits.
    """
    return vectors.permute(0, 3, 1, 2).contiguous()


class VqConfig(Protocol):
    """Describe what the graphs of a `VqTokenizer` record in their metadata."""

    @property
    def stride(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...


class VqTokenizer(nn.Module):
    """Tokenize images to one map of codes, each the nearest of a codebook to a latent vector.

    Images are [N, 3, H, W] in [-1, 1], whatever the official ones are.
    """

    config: VqConfig
    # Convolutions at the ends of encoder and decoder: images, features and codes.
    ends: ClassVar[tuple[str, ...]] = (
        "encoder.conv_in",
        "encoder.conv_out",
        "decoder.conv_in",
        "decoder.conv_out",
    )

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Return the codebook [V, C]; the nearest code has the least Euclidean distance."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Return the latent [N, C, h, w] of an image [N, 3, H, W], before quantization."""

    @abstractmethod
    def reconstruct(self, latent: Tensor) -> Tensor:
        """Return the image [N, 3, H, W], not clamped, of a quantized latent."""

    def codes(self, latent: Tensor) -> Tensor:
        """Return the codes int64 [N, h, w] of a latent [N, C, h, w]."""
        return nearest_code(latent.permute(0, 2, 3, 1), self.codebook)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the image [N, 3, H, W], not clamped, of codes int [N, h, w]."""
        return self.reconstruct(lookup(codes, self.codebook))
