"""Define VAR's multi-scale residual quantizer (arXiv 2404.02905, algorithms 1 and 2).

Maps are [N, C, H, W], codes [N, L] in scale order, coarse to fine, each scale in raster order.
Everything is float32: one wrong early code changes all later ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.vq import nearest_code
from .config import VarVqvaeConfig
from .resize import Resize, area_matrix, bicubic_matrix

PHI_RATIO = 0.5


class Phi(nn.Conv2d):
    """Refine an upsampled map of codes: x/2 + conv(x)/2, a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - PHI_RATIO) * x + PHI_RATIO * super().forward(x)

    def folded(self) -> nn.Conv2d:
        """Return the same map as one convolution."""
        identity = torch.zeros_like(self.weight)
        identity[:, :, 1, 1] = torch.eye(self.out_channels)
        assert self.bias is not None
        one = nn.Conv2d(self.in_channels, self.out_channels, kernel_size=3, padding=1)
        # Exact except for the sum at the centre, since a half is a power of two.
        weight = (1 - PHI_RATIO) * identity + PHI_RATIO * self.weight.detach()
        one.weight = nn.Parameter(weight, requires_grad=False)
        one.bias = nn.Parameter(PHI_RATIO * self.bias.detach(), requires_grad=False)
        return one


class PhiList(nn.Module):
    """Hold the convolutions that scales share, under their official name."""

    def __init__(self, phis: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class MultiScaleQuantizer(nn.Module):
    """Quantize to token maps of growing side, each of what earlier ones left.

    ``ema_vocab_hit_SV`` [S, V] holds the training's statistics of code use, nothing else reads it.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(self, config: VarVqvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)
        self.quant_resi = PhiList([Phi(config.latent_channels) for _ in range(config.phis)])
        hits = torch.zeros(len(config.patch_nums), config.vocab_size)
        self.register_buffer("ema_vocab_hit_SV", hits)
        self.make_resizes()

    def make_resizes(self) -> None:
        """Make `up.k` from the map of scale k to the whole one, and `down.k` back.

        They exist for k < S - 1.
        """
        side, sides = self.config.latent_size, self.config.patch_nums[:-1]
        self.up = nn.ModuleList(Resize(bicubic_matrix(p, side)) for p in sides)
        self.down = nn.ModuleList(Resize(area_matrix(side, p)) for p in sides)

    @property
    def last(self) -> int:
        """Return the number of the finest scale."""
        return len(self.config.patch_nums) - 1

    def shrink(self, scale: int, x: Tensor) -> Tensor:
        """Return vectors of the map at `scale`, [N, p*p, C]: the area average."""
        rows = x.flatten(2)
        if scale < self.last:
            rows = self.down[scale](rows)
        return rows.transpose(1, 2)

    def codes(self, scale: int, residual: Tensor) -> Tensor:
        """Return the nearest codes of the average at `scale`, int64 [N, p*p]."""
        return nearest_code(self.shrink(scale, residual), self.embedding.weight)

    def contribution(self, scale: int, codes: Tensor) -> Tensor:
        """Return a scale's codes [N, p*p] as a map [N, C, H, W].

        They are looked up, enlarged (except at the last scale) and refined.
        """
        side = self.config.latent_size
        h = F.embedding(codes, self.embedding.weight).transpose(1, 2)
        if scale < self.last:
            h = self.up[scale](h)
        phi = self.quant_resi.qresi_ls[self.config.phi_of_scale[scale]]
        return phi(h.reshape(*h.shape[:2], side, side))  # type: ignore[no-any-return]

    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes int64 [N, L] of a latent [N, C, H, W]."""
        codes = []
        for scale in range(self.last + 1):
            codes.append(self.codes(scale, latent))
            if scale < self.last:
                latent = latent - self.contribution(scale, codes[-1])
        return torch.cat(codes, dim=1)

    def split(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Split codes [N, L] into those of each scale, [N, p*p]."""
        return torch.split(codes, list(self.config.lengths), dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the sum of all contributions, [N, C, H, W], of codes [N, L]."""
        return self.decode_with_features(codes)[0]

    def features(self, codes: Tensor) -> Tensor:
        """Return what a transformer is fed with codes [N, L]: [N, L - p_0**2, C].

        For every scale but the first, the average at that scale of the sum of those before it.
        """
        return self.decode_with_features(codes)[1]

    def decode_with_features(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of `decode` and of `features`."""
        parts = self.split(codes)
        total = self.contribution(0, parts[0])
        shown = []
        for scale in range(1, self.last + 1):
            shown.append(self.shrink(scale, total))
            total = total + self.contribution(scale, parts[scale])
        return total, torch.cat(shown, dim=1)
