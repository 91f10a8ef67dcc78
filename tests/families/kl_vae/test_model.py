"""MAR's autoencoder against its formulas in float64, from the state_dict alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.families.kl_vae.config import KlVaeConfig
from arvg_trt.families.kl_vae.model import KlVae, infer_kl_vae_config, load_kl_vae

from ..mar.models import AUTOENCODER, random_kl_vae
from ..rar.models import random_maskgit
from ..var_vqvae.models import TINY, random_vqvae

PUBLISHED = KlVaeConfig()
# More blocks than one, so that each level's first and later ones differ.
DEEP = KlVaeConfig(32, (1, 2, 1), 2, 4)
State = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("one_thread")


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normed(state: State, name: str, x: Tensor) -> Tensor:
    """32 groups of neighbouring channels, eps 1e-6."""
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    unit = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    return unit * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def block(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(normed(state, f"{name}.norm1", x)))
    h = conv(state, f"{name}.conv2", swish(normed(state, f"{name}.norm2", h)))
    odd = f"{name}.nin_shortcut.weight" in state
    return h + (conv(state, f"{name}.nin_shortcut", x) if odd else x)


def attention(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.norm.weight" not in state:
        return x
    n, c, height, width = x.shape
    h = normed(state, f"{name}.norm", x)
    q, k, v = (conv(state, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / c**0.5, dim=2)
    out = torch.einsum("nij,ncj->nci", weights, v).reshape(n, c, height, width)
    return x + conv(state, f"{name}.proj_out", out)


def middle(state: State, half: str, h: Tensor) -> Tensor:
    h = attention(state, f"{half}.mid.attn_1", block(state, f"{half}.mid.block_1", h))
    h = block(state, f"{half}.mid.block_2", h)
    return h


def moments_by_formula(state: State, config: KlVaeConfig, image: Tensor) -> Tensor:
    levels = len(config.channels_mult)
    h = conv(state, "encoder.conv_in", image)
    for i in range(levels):
        for j in range(config.num_res_blocks):
            h = block(state, f"encoder.down.{i}.block.{j}", h)
            h = attention(state, f"encoder.down.{i}.attn.{j}", h)
        if i < levels - 1:
            name = f"encoder.down.{i}.downsample.conv"
            padded = F.pad(h, (0, 1, 0, 1))
            h = F.conv2d(padded, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
    h = middle(state, "encoder", h)
    h = conv(state, "encoder.conv_out", swish(normed(state, "encoder.norm_out", h)))
    return conv(state, "quant_conv", h)


def decode_by_formula(state: State, config: KlVaeConfig, latent: Tensor) -> Tensor:
    h = middle(
        state, "decoder", conv(state, "decoder.conv_in", conv(state, "post_quant_conv", latent))
    )
    for i in reversed(range(len(config.channels_mult))):
        for j in range(config.num_res_blocks + 1):
            h = block(state, f"decoder.up.{i}.block.{j}", h)
        if i > 0:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(state, f"decoder.up.{i}.upsample.conv", h)
    return conv(state, "decoder.conv_out", swish(normed(state, "decoder.norm_out", h)))


def close(found: Tensor, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("config", [AUTOENCODER, DEEP], ids=["two levels", "three levels"])
def test_moments_and_images_are_the_formulas(config: KlVaeConfig) -> None:
    model = random_kl_vae(config)
    size = 4 * config.stride
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(2, 3, size, size + config.stride, generator=generator) * 2 - 1
    state = {k: v.double() for k, v in model.state_dict().items()}
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_checkpoint_loads_strictly(dtype: torch.dtype) -> None:
    stored = {k: v.to(dtype) for k, v in random_kl_vae().state_dict().items()}
    found = load_kl_vae(stored, "here")
    assert found.config == AUTOENCODER
    assert all(torch.equal(v, stored[k].float()) for k, v in found.state_dict().items())


def put(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


CONV = "decoder.up.1.block.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(CONV), f"missing {CONV}"),
        (lambda s: s.pop("quant_conv.weight"), "is not a KL autoencoder: no quant_conv"),
        (put("decoder.up.1.attn.0.norm.weight", 64), r"unexpected decoder\.up\.1\.attn\.0"),
        (put(CONV, 64, 64, 1, 1), rf"{CONV} has shape \[64, 64, 1, 1\], not \[64, 64, 3, 3\]"),
        (put("quant_conv.weight", 4, 8, 1, 1), r"quant_conv\.weight has shape \[4, 8, 1, 1\]"),
        (put("encoder.conv_in.weight", 32, 1, 3, 3), "takes 1 channels, not 3"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[State], object], message: str
) -> None:
    state = dict(random_kl_vae().state_dict())
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_kl_vae(state, "kl16.ckpt")
    assert str(caught.value).startswith("kl16.ckpt: ")


def test_tokenizers_with_a_codebook_are_refused() -> None:
    with pytest.raises(ExportError, match="a tokenizer with a codebook"):
        load_kl_vae(dict(random_vqvae(TINY).state_dict()), "vae.pth")
    with pytest.raises(ExportError, match="is not a KL autoencoder: no quant_conv"):
        load_kl_vae(dict(random_maskgit().state_dict()), "maskgit.bin")
