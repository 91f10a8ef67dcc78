"""The MaskGIT-VQ tokenizer against its formulas in float64, from the state_dict alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvg_trt.families.maskgit_vq.config import MaskgitVqConfig
from arvg_trt.families.maskgit_vq.model import MaskgitVq, infer_maskgit_config

from ..rar.models import TOKENIZER, random_maskgit
from ..shared.formulas import State, close, conv, doubled, images, in_double, normed, swish

PUBLISHED = MaskgitVqConfig()
# More blocks than one, so that each level's first and later ones differ.
DEEP = MaskgitVqConfig(32, (1, 2, 1), 2, 8, 24)


def block(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(normed(state, f"{name}.norm1", x)))
    h = conv(state, f"{name}.conv2", swish(normed(state, f"{name}.norm2", h)))
    if f"{name}.nin_shortcut.weight" in state:
        return h + conv(state, f"{name}.nin_shortcut", h)  # of h: the input is not added
    return h + x


def encode_by_formula(state: State, config: MaskgitVqConfig, image: Tensor) -> Tensor:
    """[-1, 1] -> latent; the official input is in [0, 1]."""
    levels, count = len(config.channels_mult), config.num_res_blocks
    h = conv(state, "encoder.conv_in", (image + 1) / 2)
    for i in range(levels):
        for j in range(count):
            h = block(state, f"encoder.down.{i}.block.{j}", h)
        if i < levels - 1:
            n, c, height, width = h.shape
            h = h.reshape(n, c, height // 2, 2, width // 2, 2).mean(dim=(3, 5))
    for j in range(count):
        h = block(state, f"encoder.mid.{j}", h)
    return conv(state, "encoder.conv_out", swish(normed(state, "encoder.norm_out", h)))


def decode_by_formula(state: State, config: MaskgitVqConfig, codes: Tensor) -> Tensor:
    """codes [N, h, w] -> [-1, 1]."""
    h = state["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
    h = conv(state, "decoder.conv_in", h)
    for j in range(config.num_res_blocks):
        h = block(state, f"decoder.mid.{j}", h)
    for i in reversed(range(len(config.channels_mult))):
        for j in range(config.num_res_blocks):
            h = block(state, f"decoder.up.{i}.block.{j}", h)
        if i > 0:
            h = conv(state, f"decoder.up.{i}.upsample_conv", doubled(h))
    return 2 * conv(state, "decoder.conv_out", swish(normed(state, "decoder.norm_out", h))) - 1


@pytest.mark.parametrize("config", [TOKENIZER, DEEP], ids=["two levels", "three levels"])
def test_latents_codes_and_images_are_the_formulas(config: MaskgitVqConfig) -> None:
    model, image = random_maskgit(config), images(config)
    state = in_double(model)
    latent = encode_by_formula(state, config, image.double())
    close(model.encode(image), latent)
    vectors, codebook = latent.permute(0, 2, 3, 1), state["quantize.embedding.weight"]
    codes = (vectors[..., None, :] - codebook).square().sum(-1).argmin(-1)
    assert torch.equal(model.codes(model.encode(image)), codes)
    assert len(codes.unique()) > 4
    close(model.decode(codes), decode_by_formula(state, config, codes))


def test_the_shortcut_takes_the_blocks_own_output() -> None:
    """Where widths differ the input reaches the output through the convolutions alone."""
    model = random_maskgit()
    changed = model.encoder.down[1].block[0]
    changed.conv2.weight.zero_()
    x = torch.randn(1, 32, 4, 4)
    assert changed(x).abs().max() == 0
    same = model.encoder.down[0].block[0]
    same.conv2.weight.zero_()
    assert torch.equal(same(x), x)


def test_the_published_configuration_has_its_keys_and_parameters() -> None:
    with torch.device("meta"):
        model = MaskgitVq(PUBLISHED)
    state = model.state_dict()
    assert len(state) == 168
    assert sum(p.numel() for p in model.encoder.parameters()) == 23_775_104
    assert sum(p.numel() for p in model.decoder.parameters()) == 30_478_339
    assert sum(p.numel() for p in model.parameters()) == 54_515_587
    assert infer_maskgit_config(state, "here") == PUBLISHED
    assert PUBLISHED.stride == 16
    shortcuts = [k for k in state if "nin_shortcut" in k]
    assert shortcuts == [
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.down.4.block.0.nin_shortcut.weight",
        "decoder.up.1.block.0.nin_shortcut.weight",
        "decoder.up.3.block.0.nin_shortcut.weight",
    ]
    biased = {k for k in state if k.endswith("bias") and "norm" not in k}
    ups = {f"decoder.up.{i}.upsample_conv.bias" for i in range(1, 5)}
    ends = {"encoder.conv_out.bias", "decoder.conv_in.bias", "decoder.conv_out.bias"}
    assert biased == ups | ends
