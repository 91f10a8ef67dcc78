"""MAR's training loss against the formulas in float64 numpy, and what it draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from arvg_trt.families.mar.model import MarTransformer
from arvg_trt.training.mar_loss import (
    Noised,
    diffusion_loss,
    initialize,
    mar_loss,
    masked,
    masked_count,
    noise_errors,
    random_orders,
)

from ..families.mar.models import SMALL, random_mar

Array = NDArray[np.float64]
TIMES = 1000
pytestmark = pytest.mark.usefixtures("one_thread")


def kept_by_formula() -> Array:
    def a(time: int) -> float:
        return math.cos((time / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.cumprod([1 - min(1 - a(i + 1) / a(i), 0.999) for i in range(TIMES)])


def cdf(x: float) -> float:
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def loss_by_formula(x: Array, time: int, noise: Array, predicted: Array, spread: Array) -> float:
    """Return one token's loss: mean squared error, and the bound in bits per number."""
    kept = kept_by_formula()
    now, before = kept[time], kept[time - 1] if time else 1.0
    beta = 1 - now / before
    least_now, least_before = (time, time - 1) if time else (1, 0)  # the first has no posterior
    beta_of_least = 1 - kept[least_now] / kept[least_before]
    least = beta_of_least * (1 - kept[least_before]) / (1 - kept[least_now])
    noisy = now**0.5 * x + (1 - now) ** 0.5 * noise
    guess = (noisy - (1 - now) ** 0.5 * predicted) / now**0.5
    bits = []
    for i in range(len(x)):
        share = (spread[i] + 1) / 2
        variance = math.exp(share * math.log(beta) + (1 - share) * math.log(least))
        # By the product of the two Gaussians that make the posterior.
        true_mean = (before**0.5 * beta * x[i] + (1 - beta) ** 0.5 * (1 - before) * noisy[i]) / (
            1 - now
        )
        mean = (before**0.5 * beta * guess[i] + (1 - beta) ** 0.5 * (1 - before) * noisy[i]) / (
            1 - now
        )
        if time:
            ratio = least / variance
            nats = 0.5 * (ratio - 1 - math.log(ratio) + (true_mean - mean) ** 2 / variance)
        else:
            deviation = variance**0.5
            upto, below = (cdf((x[i] - mean + s / 255) / deviation) for s in (1, -1))
            chance = upto if x[i] < -0.999 else 1 - below if x[i] > 0.999 else upto - below
            nats = -math.log(max(chance, 1e-12))
        bits.append(nats / math.log(2))
    return float(np.mean((noise - predicted) ** 2) + np.mean(bits))


@pytest.mark.parametrize("time", [0, 1, 250, 999])
def test_the_loss_is_the_formula(time: int) -> None:
    """Tokens within and beyond the bins that the first step's likelihood knows."""
    net = random_mar().diffloss.net.double()
    generator = torch.Generator().manual_seed(time)
    x = torch.randn(5, SMALL.latent_channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if time == 0:
        x[0] = torch.tensor([0.1, -0.5, 1.7, -1.2])
    z = torch.randn(5, SMALL.width, generator=generator, dtype=torch.float64)
    times = torch.full((5,), time)
    found = diffusion_loss(net, Noised(x, z, times, noise))
    now = kept_by_formula()[time]
    out = net(now**0.5 * x + (1 - now) ** 0.5 * noise, times, z).numpy()
    predicted, spread = np.split(out, 2, axis=1)
    for row in range(5):
        wanted = loss_by_formula(
            x[row].numpy(), time, noise[row].numpy(), predicted[row], spread[row]
        )
        assert float(found[row]) == pytest.approx(wanted, rel=1e-7)


def test_the_loss_in_float32_is_that_of_float64() -> None:
    """Constants are made in float64: 1 - kept of the first time has no digits in float32."""
    generator = torch.Generator().manual_seed(0)
    times = torch.tensor([0, 1, 10, 500, 998, 999])
    x, noise = torch.randn(2, 6, SMALL.latent_channels, generator=generator, dtype=torch.float64)
    z = torch.randn(6, SMALL.width, generator=generator, dtype=torch.float64)
    net = random_mar().diffloss.net
    single = diffusion_loss(net, Noised(x.float(), z.float(), times, noise.float()))
    double = diffusion_loss(net.double(), Noised(x, z, times, noise))
    np.testing.assert_allclose(single, double, rtol=2e-3)


def test_the_last_time_has_its_part_in_the_loss() -> None:
    """30 times the squared error that an eighth of the draws have there, rounded up."""
    model = random_mar().double()
    latents = torch.randn(3, SMALL.length, SMALL.latent_channels, dtype=torch.float64)
    labels, seed = torch.tensor([0, 4, 2]), 11
    found = float(mar_loss(model, latents, labels, torch.Generator().manual_seed(seed)))
    seen = masked(model, latents, labels, torch.Generator().manual_seed(seed))
    net = model.diffloss.net
    official = float(diffusion_loss(net, seen).mean())
    count = -(-len(seen.x) // 8)
    x, noise = (tensor[:count].numpy() for tensor in (seen.x, seen.noise))
    kept = kept_by_formula()[999]
    noisy = torch.from_numpy(kept**0.5 * x + (1 - kept) ** 0.5 * noise)
    out = net(noisy, torch.full((count,), 999), seen.z[:count]).numpy()
    error = np.mean((noise - out[:, : SMALL.latent_channels]) ** 2)
    assert found == pytest.approx(official + 30 * error, rel=1e-9)
    assert 30 * error > 0.1 * official


def test_the_bound_teaches_the_variance_alone() -> None:
    net = random_mar().diffloss.net.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 6, SMALL.latent_channels, generator=generator)
    z, times = torch.randn(6, SMALL.width, generator=generator), torch.randint(TIMES, (6,))
    diffusion_loss(net, Noised(x, z, times, noise)).sum().backward()
    whole = net.final_layer.linear.bias.grad
    assert whole is not None
    kept = torch.tensor(kept_by_formula())[times].unsqueeze(1)
    noisy = (kept.sqrt() * x + (1 - kept).sqrt() * noise).float()
    net.zero_grad()
    predicted = net(noisy, times, z)[:, : SMALL.latent_channels]
    whole = whole.clone()
    (noise - predicted).square().mean(dim=1).sum().backward()
    alone = net.final_layer.linear.bias.grad
    assert alone is not None
    torch.testing.assert_close(whole[: SMALL.latent_channels], alone[: SMALL.latent_channels])
    assert (
        alone[SMALL.latent_channels :].abs().max() == 0 < whole[SMALL.latent_channels :].abs().max()
    )


def test_orders_are_permutations_and_differ() -> None:
    orders = random_orders(50, 9, torch.Generator().manual_seed(0))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(9).expand(50, 9))
    assert len(orders.unique(dim=0)) > 45


def test_masked_counts_follow_the_official_distribution() -> None:
    """ceil(L * r), r of a normal around 1 with deviation 0.25, cut to [0.7, 1]."""
    generator = torch.Generator().manual_seed(0)
    counts = np.array([masked_count(64, generator) for _ in range(4000)])
    official = stats.truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25)
    assert counts.min() == math.ceil(64 * 0.7) and counts.max() == 64
    for count in (48, 54, 60, 63):
        wanted = official.cdf(count / 64)  # ceil(64 r) <= count
        assert np.mean(counts <= count) == pytest.approx(wanted, abs=0.03)


def test_the_official_initialisation_predicts_nothing() -> None:
    torch.manual_seed(0)
    model = MarTransformer(SMALL).requires_grad_(False)
    initialize(model)
    x, z = torch.randn(3, SMALL.latent_channels), torch.randn(3, SMALL.width)
    assert model.diffloss.net(x, torch.tensor([0, 1, 999]), z).abs().max() == 0
    assert model.encoder_blocks[0].attn.qkv.weight.std() > 0.05
    assert model.z_proj.bias.abs().max() == 0
    assert float(model.class_emb.weight.std()) == pytest.approx(0.02, rel=0.3)


def test_a_few_steps_of_training_lower_the_loss() -> None:
    """All parameters that matter get gradients, the null class's through a dropped label."""
    torch.manual_seed(0)
    model = MarTransformer(SMALL)
    initialize(model)
    latents, labels = torch.randn(8, SMALL.length, SMALL.latent_channels), torch.arange(8) % 6
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        loss = mar_loss(model, latents, labels, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        if step == 20:
            still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert still == []
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_the_same_generator_gives_the_same_loss() -> None:
    model, labels = random_mar(), torch.tensor([1, SMALL.num_classes])
    latents = torch.randn(2, SMALL.length, SMALL.latent_channels)
    first, same, other = (
        float(mar_loss(model, latents, labels, torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_the_linear_guess_errs_as_the_formula_says_and_an_untrained_model_as_no_guess() -> None:
    torch.manual_seed(0)
    model = MarTransformer(SMALL)
    initialize(model)
    deviation = torch.linspace(0.4, 1.6, SMALL.latent_channels)
    latents = 3 + deviation * torch.randn(64, SMALL.length, SMALL.latent_channels)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % SMALL.num_classes
    untrained, guess = noise_errors(model, latents, labels, generator)
    kept, variance = kept_by_formula()[:, None], deviation.double().numpy() ** 2
    wanted = np.mean(kept * variance / (kept * variance + 1 - kept))
    assert guess == pytest.approx(wanted, rel=0.05)
    assert untrained == pytest.approx(1, rel=0.02)
