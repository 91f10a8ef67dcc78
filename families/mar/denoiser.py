"""Define the network of MAR's diffusion loss: a small MLP that denoises one token at a time.

It predicts the noise in a token and how its variance is interpolated, given the time and what the
transformer says of the token. Modulation, in the order shift, scale, gate (shift, scale in the
last layer), comes from both. Parameter names are the official ones, under ``diffloss.net``.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..shared.transformer import modulated_norm, spread_ones
from .config import MarConfig

# Added to the rows to turn scales into gains: LN(x) * (1 + scale) + shift.
ONE_OF_BLOCK = (0.0, 1.0, 0.0)
ONE_OF_LAST = (0.0, 1.0)
LONGEST_PERIOD = 10_000.0


def time_waves(times: Tensor, count: int) -> Tensor:
    """Return cosines, then sines of times [m] by count / 2 frequencies, [m, count]."""
    half = count // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    waves = times.float().unsqueeze(1) * torch.exp(-math.log(LONGEST_PERIOD) * steps / half)
    return torch.cat((waves.cos(), waves.sin()), dim=1)


class TimeEmbedding(nn.Module):
    """Embed times [m], of the schedule before respacing, as [m, W]."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        first = cast(nn.Linear, self.mlp[0])
        return self.mlp(time_waves(times, self.frequencies).to(first.weight.dtype))  # type: ignore[no-any-return]


def modulation(width: int, chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))


class DenoiserBlock(nn.Module):
    """Compute x + gate mlp(LN(x) gain + shift); LN with an affine of its own."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = modulation(width, 3)

    def modulation(self, condition: Tensor) -> Tensor:
        """Return the modulation [m, 3W] of [m, W], with gains instead of scales."""
        rows: Tensor = self.adaLN_modulation(condition)
        return rows + spread_ones(ONE_OF_BLOCK, rows)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return [m, W] of x [m, W] and `condition` [m, W], of time and token."""
        shift, gain, gate = self.modulation(condition).chunk(3, dim=1)
        return x + gate * self.mlp(self.in_ln(x) * gain + shift)  # type: ignore[no-any-return]


class LastLayer(nn.Module):
    """Compute linear(LN(x) gain + shift); LN without an affine."""

    def __init__(self, width: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def modulation(self, condition: Tensor) -> Tensor:
        """Return the modulation [m, 2W] of [m, W], with gains instead of scales."""
        rows: Tensor = self.adaLN_modulation(condition)
        return rows + spread_ones(ONE_OF_LAST, rows)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, gain = self.modulation(condition).chunk(2, dim=1)
        return self.linear(modulated_norm(x, gain, shift, self.eps))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """Predict noise and variance [m, 2c] of noisy tokens [m, c] at times [m].

    It is conditioned on the transformer's output. The first half of the prediction is the noise,
    the second says where the log of the variance lies: at 1 it is that of the schedule's step, at
    -1 that of its posterior.
    """

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        width, eps = config.head_width, config.norm_eps
        self.input_proj = nn.Linear(config.latent_channels, width)
        self.time_embed = TimeEmbedding(config.frequencies, width)
        self.cond_embed = nn.Linear(config.decoder_width, width)
        self.res_blocks = nn.ModuleList(DenoiserBlock(width, eps) for _ in range(config.head_depth))
        self.final_layer = LastLayer(width, 2 * config.latent_channels, eps)

    def denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction for x [m, c]; `condition` [m, W] sums both embeddings.

        They are the embeddings of time and token.
        """
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, condition)
        return self.final_layer(h, condition)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, times: Tensor, z: Tensor) -> Tensor:
        """Return the prediction for x [m, c] at times [m] before respacing, given z [m, C]."""
        return self.denoise(x, self.time_embed(times) + self.cond_embed(z))


class DiffusionLoss(nn.Module):
    """Hold the denoiser under its official name."""

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        self.net = Denoiser(config)
