"""Compute the loss that trains a MAR: masked tokens, and their diffusion loss.

It is the official training's (github.com/LTH14/mar), without its dropout: a random order for each
image; a share of masked tokens, one a batch, from a normal distribution around 1 with deviation
0.25, cut to [0.7, 1]; every masked token at several random times of the diffusion. Its loss is the
squared error of the noise, plus the variational bound, which teaches the variance alone, in bits a
number.

Beside the official loss, some tokens are seen at the last time, and their error counts more. A
diffusion begins there, where a token is all noise, and the first of 100 steps makes an error of the
noise 316 times larger. What long trainings learn, a short one does not by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..families.mar.denoiser import Denoiser
from ..families.mar.diffusion import Array, Diffusion
from ..families.mar.model import MarTransformer
from ..runtime.spec import TIMES

LEAST_MASKED, DEVIATION = 0.7, 0.25
# Share of the draws that also train at the last time, and its weight.
LAST_SHARE, LAST_WEIGHT = 1 / 8, 30.0
DRAWS = 4  # times and noises drawn for each masked token in a step
DIFFUSION = Diffusion.of(TIMES)
SIGNAL, NOISE = np.sqrt(DIFFUSION.alpha_bar), np.sqrt(1 - DIFFUSION.alpha_bar)
HALF_BIN = 1 / 255  # the first step's likelihood is that of numbers in bins twice as wide
EDGE = 0.999  # numbers beyond it are in the last bin, without end
LEAST_CHANCE = 1e-12


def initialize(model: MarTransformer) -> None:
    """Initialize as officially: the denoiser begins with closed gates and predicts 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    net = model.diffloss.net
    for name, parameter in net.named_parameters():
        if name.startswith("time_embed.mlp") and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)
        if "adaLN_modulation" in name or name == "final_layer.linear.weight":
            nn.init.zeros_(parameter)


def random_orders(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Return a permutation per image, int64 [rows, length]."""
    return torch.rand(rows, length, generator=generator).argsort(dim=1)


def masked_count(length: int, generator: torch.Generator) -> int:
    """Return how many tokens of each image are masked: 1 to `length`."""
    least, most = (
        0.5 * math.erfc(-(share - 1) / DEVIATION / math.sqrt(2)) for share in (LEAST_MASKED, 1.0)
    )
    drawn = torch.rand((), generator=generator, dtype=torch.float64)
    share = 1 + DEVIATION * float(torch.special.ndtri(least + (most - least) * drawn))
    return min(length, math.ceil(length * share))


@dataclass(frozen=True, slots=True)
class Noised:
    """Hold masked tokens in the diffusion: m of them, each as often as it is seen.

    Tokens x and their noise are [m, c], times int64 [m], the transformers' output z [m, C].
    """

    x: Tensor
    z: Tensor
    times: Tensor
    noise: Tensor

    @property
    def noisy(self) -> Tensor:
        """Return the tokens [m, c] with the noise of their times added."""
        signal, noise = at(SIGNAL, self.times, self.x), at(NOISE, self.times, self.x)
        return signal * self.x + noise * self.noise

    def at_last_time(self, count: int) -> Noised:
        """Return the first `count`, with the same noise."""
        times = torch.full((count,), TIMES - 1)
        return Noised(self.x[:count], self.z[:count], times, self.noise[:count])


def mar_loss(
    model: MarTransformer,
    latents: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    draws: int = DRAWS,
) -> Tensor:
    """Return the mean loss over the masked tokens of a batch; arguments are those of `masked`."""
    seen, net = masked(model, latents, labels, generator, draws), model.diffloss.net
    with torch.autocast("cpu", enabled=False):  # rounded to bfloat16, the last time's error stays
        loss = diffusion_loss(net, seen).mean()
        last = seen.at_last_time(math.ceil(LAST_SHARE * len(seen.x)))
        predicted, _ = net(last.noisy, last.times, last.z).chunk(2, dim=1)
        squared: Tensor = (last.noise - predicted).square().mean()
        return loss + LAST_WEIGHT * squared


@torch.no_grad()
def noise_errors(
    model: MarTransformer, latents: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Return mean squared errors of the noise: the model's, and the best linear guess's.

    The latter knows of a token no more than its channels' means m and variances v: of
    x_t = a x + s noise it takes the noise for s (x_t - a m) / (a^2 v + s^2).
    """
    noised = masked(model, latents, labels, generator)
    predicted, _ = model.diffloss.net(noised.noisy, noised.times, noised.z).chunk(2, dim=1)
    mean, variance = latents.mean(dim=(0, 1)), latents.var(dim=(0, 1))
    a, s = at(SIGNAL, noised.times, latents), at(NOISE, noised.times, latents)
    guess = s * (noised.noisy - a * mean) / (a.square() * variance + s.square())
    errors = ((noised.noise - found).square().mean().item() for found in (predicted, guess))
    return next(errors), next(errors)


def masked(
    model: MarTransformer,
    latents: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    draws: int = DRAWS,
) -> Noised:
    """Return the masked tokens of a batch, each at `draws` times and noises.

    `latents` [rows, L, c] are the images' tokens in raster order, of deviation about 1: the
    autoencoder's latents, drawn from its moments, times `latent_scale`. `labels` int64 [rows];
    dropped ones are the null class `num_classes`.
    """
    rows, length, channels = latents.shape
    known = length - masked_count(length, generator)
    position_ids = random_orders(rows, length, generator)
    ordered = latents.gather(1, position_ids.unsqueeze(2).expand(-1, -1, channels))
    z = model(labels, ordered[:, :known], position_ids)
    target = ordered[:, known:].reshape(-1, channels).repeat(draws, 1)
    times = torch.randint(TIMES, (len(target),), generator=generator)
    noise = torch.randn(target.shape, generator=generator, dtype=target.dtype)
    z = z.to(latents.dtype).reshape(-1, z.shape[2]).repeat(draws, 1)
    return Noised(target, z, times, noise)


def diffusion_loss(net: Denoiser, noised: Noised) -> Tensor:
    """Return the noise's mean squared error plus `variational_bound`, [m].

    The bound is computed with the noise held constant.
    """
    noisy = noised.noisy
    predicted, spread = net(noisy, noised.times, noised.z).to(noisy.dtype).chunk(2, dim=1)
    squared: Tensor = (noised.noise - predicted).square().mean(dim=1)
    return squared + variational_bound(noised.x, noisy, predicted.detach(), spread, noised.times)


def variational_bound(
    x: Tensor, noisy: Tensor, predicted: Tensor, spread: Tensor, times: Tensor
) -> Tensor:
    """Return the divergence of the predicted reverse step from the true one, [m].

    It is in bits a number. At time 0 it is the negative log-likelihood of x, in bins of 2/255.
    """
    tables, like = DIFFUSION, x
    clean = at(tables.clean_of_x, times, like) * noisy
    clean = clean - at(tables.clean_of_noise, times, like) * predicted
    least, most = (at(table, times, like) for table in (tables.log_least, tables.log_most))
    share = (spread + 1) / 2
    log_variance = share * most + (1 - share) * least
    # Both means have the same share of x_t; x and its estimate differ.
    mean_of_clean = at(tables.mean_of_clean, times, like)
    apart = mean_of_clean * (x - clean)
    divergence = 0.5 * (
        log_variance - least - 1 + (least - log_variance).exp() + apart**2 * (-log_variance).exp()
    )
    mean = mean_of_clean * clean + at(tables.mean_of_x, times, like) * noisy
    nats = torch.where(times.unsqueeze(1) == 0, -log_chance(x, mean, log_variance), divergence)
    return nats.mean(dim=1) / math.log(2)


def log_chance(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log of the probability that a normal distribution gives to the bin of x."""
    inverse = (-0.5 * log_variance).exp()
    below = normal_cdf(inverse * (x - mean - HALF_BIN))
    upto = normal_cdf(inverse * (x - mean + HALF_BIN))
    chance = torch.where(x < -EDGE, upto, torch.where(x > EDGE, 1 - below, upto - below))
    return chance.clamp_min(LEAST_CHANCE).log()


def normal_cdf(x: Tensor) -> Tensor:
    """Return the normal distribution function, by the official approximation with a tanh."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def at(table: Array, times: Tensor, like: Tensor) -> Tensor:
    """Return entries of a table of all times, [m, 1]."""
    return torch.from_numpy(table).to(like)[times].unsqueeze(1)
