"""Define what decides the shapes of VAR's VQVAE, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ...errors import ExportError
from ..shared.pyramid import Pyramid

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
# Two of ten scales lie exactly between two convolutions in real numbers; float64 decides them.
PHI_OF_TEN_SCALES = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@dataclass(frozen=True, slots=True)
class VarVqvaeConfig(Pyramid):
    """Hold everything that decides the shapes of a multi-scale residual VQVAE.

    ``patch_nums`` are the sides of the token maps, coarse to fine; the last is the latent's side.
    ``phis`` convolutions are shared by the scales.
    """

    channels: int = 160
    channels_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 32
    vocab_size: int = 4096
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    phis: int = 4
    quant_conv_kernel: int = 3

    def __post_init__(self) -> None:
        sides = self.patch_nums
        rising = all(a < b for a, b in pairwise(sides))
        if len(sides) < 2 or sides[0] < 1 or not rising:
            raise ExportError(
                f"has patch numbers {list(sides)}, not two or more that rise from 1",
                do="check patch_nums in config.json",
            )
        if self.quant_conv_kernel % 2 == 0:
            raise ExportError(
                f"has a quant_conv of {self.quant_conv_kernel}x{self.quant_conv_kernel}, "
                "an even size",
                do="use another file",
            )

    @property
    def latent_size(self) -> int:
        return self.patch_nums[-1]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size

    @property
    def image_size(self) -> int:
        return self.latent_size * self.stride

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the number of tokens of each scale."""
        return tuple(p * p for p in self.patch_nums)

    @property
    def phi_of_scale(self) -> tuple[int, ...]:
        """Return which convolution refines which scale."""
        if (len(self.patch_nums), self.phis) == (10, 4):
            return PHI_OF_TEN_SCALES
        return tuple(
            nearest_tick(scale / (len(self.patch_nums) - 1), self.phis)
            for scale in range(len(self.patch_nums))
        )


def nearest_tick(position: float, count: int) -> int:
    """Return which of `count` ticks in [0, 1] is nearest; of equal distances, the first.

    Four ticks lie at 1/12 ... 11/12, any other number at the middles of equal parts. Distances are
    compared in float64, and the order of operations is numpy.linspace's, since some distances are
    equal but for rounding.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    first, last = margin, 1 - margin
    step = (last - first) / max(1, count - 1)
    ticks = [k * step + first for k in range(count - 1)] + [last]
    distances = [abs(tick - position) for tick in ticks]
    return distances.index(min(distances))
