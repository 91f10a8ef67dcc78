"""MAR's autoencoder against its formulas in float64, from the state_dict alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvg_trt.families.kl_vae.config import KlVaeConfig
from arvg_trt.families.kl_vae.model import KlVae, infer_kl_vae_config

from ..mar.models import AUTOENCODER, random_kl_vae
from ..shared.formulas import (
    State,
    attention,
    close,
    conv,
    doubled,
    halved,
    images,
    in_double,
    normed,
    residual,
    swish,
)

PUBLISHED = KlVaeConfig()
# More blocks than one, so that each level's first and later ones differ.
DEEP = KlVaeConfig(32, (1, 2, 1), 2, 4)
pytestmark = pytest.mark.usefixtures("one_thread")


def middle(state: State, half: str, h: Tensor) -> Tensor:
    h = attention(state, f"{half}.mid.attn_1", residual(state, f"{half}.mid.block_1", h))
    h = residual(state, f"{half}.mid.block_2", h)
    return h


def moments_by_formula(state: State, config: KlVaeConfig, image: Tensor) -> Tensor:
    levels = len(config.channels_mult)
    h = conv(state, "encoder.conv_in", image)
    for i in range(levels):
        for j in range(config.num_res_blocks):
            h = residual(state, f"encoder.down.{i}.block.{j}", h)
            if f"encoder.down.{i}.attn.{j}.norm.weight" in state:
                h = attention(state, f"encoder.down.{i}.attn.{j}", h)
        if i < levels - 1:
            h = halved(state, f"encoder.down.{i}.downsample.conv", h)
    h = middle(state, "encoder", h)
    h = conv(state, "encoder.conv_out", swish(normed(state, "encoder.norm_out", h)))
    return conv(state, "quant_conv", h)


def decode_by_formula(state: State, config: KlVaeConfig, latent: Tensor) -> Tensor:
    h = middle(
        state, "decoder", conv(state, "decoder.conv_in", conv(state, "post_quant_conv", latent))
    )
    for i in reversed(range(len(config.channels_mult))):
        for j in range(config.num_res_blocks + 1):
            h = residual(state, f"decoder.up.{i}.block.{j}", h)
        if i > 0:
            h = conv(state, f"decoder.up.{i}.upsample.conv", doubled(h))
    return conv(state, "decoder.conv_out", swish(normed(state, "decoder.norm_out", h)))


@pytest.mark.parametrize("config", [AUTOENCODER, DEEP], ids=["two levels", "three levels"])
def test_moments_and_images_are_the_formulas(config: KlVaeConfig) -> None:
    model, image = random_kl_vae(config), images(config)
    state = in_double(model)
    mean, log_variance = moments_by_formula(state, config, image.double()).chunk(2, dim=1)
    close(model.encode(image), mean)
    close(model.moments(image)[1], log_variance)
    close(model.decode(mean.float()), decode_by_formula(state, config, mean))


def test_the_log_variance_is_kept_in_bounds() -> None:
    model = random_kl_vae()
    model.quant_conv.bias[-1], model.quant_conv.bias[-2] = 100.0, -100.0
    spread = model.moments(torch.zeros(1, 3, 4, 4))[1]
    assert (spread[:, -1] == 20).all()
    assert (spread[:, -2] == -30).all()


def test_the_published_configuration_has_its_keys_and_parameters() -> None:
    with torch.device("meta"):
        model = KlVae(PUBLISHED)
    state = model.state_dict()
    assert len(state) == 312
    assert sum(p.numel() for p in model.encoder.parameters()) == 28_265_760
    assert sum(p.numel() for p in model.decoder.parameters()) == 38_188_931
    assert sum(p.numel() for p in model.parameters()) == 66_456_019
    assert infer_kl_vae_config(state, "here") == PUBLISHED
    assert PUBLISHED.stride == 16
    attended = {k.rpartition(".attn")[0] for k in state if k.endswith(".q.weight")}
    assert attended == {"encoder.down.4", "encoder.mid", "decoder.mid"}
