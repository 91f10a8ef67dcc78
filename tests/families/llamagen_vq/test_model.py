"""The LlamaGen VQ tokenizer against its formulas in float64, from the state_dict alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvg_trt.families.llamagen_vq.config import VQ_16, LlamagenVqConfig
from arvg_trt.families.llamagen_vq.model import LlamagenVq, infer_llamagen_config
from arvg_trt.families.shared.vq import lookup
from arvg_trt.families.shared.vq_graphs import VqDecoderGraph, excluded

from ..par.models import TOKENIZER, random_llamagen
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

VQ_8 = LlamagenVqConfig(channels_mult=(1, 2, 2, 4))
# More blocks and levels than one, so that each of them differs from the next.
DEEP = LlamagenVqConfig(32, (1, 2, 1), 2, 16, 8, 24)
pytestmark = pytest.mark.usefixtures("one_thread")


def levels(state: State, half: str, x: Tensor, count: int, blocks: int, at: int) -> Tensor:
    """All levels in the order of their numbers, with attention in number `at`."""
    for n in range(count):
        level = f"{half}.conv_blocks.{n}"
        for j in range(blocks):
            x = residual(state, f"{level}.res.{j}", x)
            if n == at:
                x = attention(state, f"{level}.attn.{j}", x)
        if n == count - 1:
            return x
        if half == "decoder":
            x = conv(state, f"{level}.upsample.conv", doubled(x))
        else:
            x = halved(state, f"{level}.downsample.conv", x)
    raise AssertionError("no levels")


def middle(state: State, half: str, x: Tensor) -> Tensor:
    x = attention(state, f"{half}.mid.1", residual(state, f"{half}.mid.0", x))
    return residual(state, f"{half}.mid.2", x)


def unit(x: Tensor, dim: int) -> Tensor:
    return x / x.square().sum(dim, keepdim=True).sqrt()


def encode_by_formula(state: State, config: LlamagenVqConfig, image: Tensor) -> Tensor:
    count = len(config.channels_mult)
    h = conv(state, "encoder.conv_in", image)
    h = levels(state, "encoder", h, count, config.num_res_blocks, at=count - 1)
    h = swish(normed(state, "encoder.norm_out", middle(state, "encoder", h)))
    return unit(conv(state, "quant_conv", conv(state, "encoder.conv_out", h)), 1)


def decode_by_formula(state: State, config: LlamagenVqConfig, codes: Tensor) -> Tensor:
    """The decoder's levels are numbered as they run, 0 of the lowest resolution."""
    h = unit(state["quantize.embedding.weight"], 1)[codes].permute(0, 3, 1, 2)
    h = conv(state, "decoder.conv_in", conv(state, "post_quant_conv", h))
    count = len(config.channels_mult)
    h = levels(
        state, "decoder", middle(state, "decoder", h), count, config.num_res_blocks + 1, at=0
    )
    return conv(state, "decoder.conv_out", swish(normed(state, "decoder.norm_out", h)))


@pytest.mark.parametrize("config", [TOKENIZER, DEEP], ids=["two levels", "three levels"])
def test_latents_codes_and_images_are_the_formulas(config: LlamagenVqConfig) -> None:
    model, image = random_llamagen(config), images(config)
    state = in_double(model)
    latent = encode_by_formula(state, config, image.double())
    close(model.encode(image), latent)
    codebook = unit(state["quantize.embedding.weight"], 1)
    codes = torch.einsum("nchw,vc->nhwv", latent, codebook).argmax(-1)
    assert torch.equal(model.codes(model.encode(image)), codes)
    assert len(codes.unique()) > 4
    close(model.decode(codes), decode_by_formula(state, config, codes))


def test_the_length_of_codes_and_latents_changes_nothing() -> None:
    """Codes are compared by their direction, and a code's own length never reaches the decoder."""
    model, image = random_llamagen(), images(TOKENIZER)
    lengths = model.quantize.embedding.weight.norm(dim=1)
    assert lengths.max() > 5 * lengths.min()
    codes = model.codes(model.encode(image))
    picture = model.decode(codes)
    model.quantize.embedding.weight.mul_(torch.rand(TOKENIZER.vocab_size, 1) + 0.5)
    model.quant_conv.weight.mul_(3)
    model.quant_conv.bias.mul_(3)
    assert torch.equal(model.codes(model.encode(image)), codes)
    torch.testing.assert_close(model.decode(codes), picture)


def test_vectors_of_codes_lie_in_row_order() -> None:
    """PyTorch's group norms of channels-last maps lose digits: 1e-5 of an image at 256x256."""
    assert lookup(torch.zeros(1, 3, 4, dtype=torch.int64), torch.ones(2, 8)).is_contiguous()


def test_the_graph_has_codes_of_unit_length() -> None:
    graph = VqDecoderGraph(random_llamagen())
    torch.testing.assert_close(graph.codes.norm(dim=1), torch.ones(TOKENIZER.vocab_size))


@pytest.mark.parametrize(
    ("config", "encoder", "decoder", "parameters", "convolutions"),
    [(VQ_16, 29_298_176, 42_449_795, 71_883_403, 104), (VQ_8, None, None, 70_109_835, 92)],
    ids=["VQ-16", "VQ-8"],
)
def test_the_published_configurations_have_their_keys_and_parameters(
    config: LlamagenVqConfig,
    encoder: int | None,
    decoder: int | None,
    parameters: int,
    convolutions: int,
) -> None:
    with torch.device("meta"):
        model = LlamagenVq(config)
    state = model.state_dict()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, model.encoder, model.decoder)]
    assert sizes[0] == parameters
    assert encoder is None or sizes[1:] == [encoder, decoder]
    assert infer_llamagen_config(state, "here") == config
    found = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert len(found) == convolutions
    left_out = {name for half in excluded(model).values() for name in half}
    assert left_out - found == {"nearest"} and len(found - left_out) == convolutions - 4


def test_levels_are_numbered_as_they_run() -> None:
    with torch.device("meta"):
        state = LlamagenVq(VQ_16).state_dict()
    assert len(state) + 1 == 344  # the file has the use of codes too
    attentions = {k.partition(".attn.")[0] for k in state if ".attn." in k}
    assert attentions == {"encoder.conv_blocks.4", "decoder.conv_blocks.0"}
    assert sum(".attn." in k for k in state) == 5 * 10  # two in the encoder, three in the decoder
    shortcuts = [k for k in state if k.endswith("nin_shortcut.weight")]
    assert shortcuts == [
        "encoder.conv_blocks.2.res.0.nin_shortcut.weight",
        "encoder.conv_blocks.4.res.0.nin_shortcut.weight",
        "decoder.conv_blocks.1.res.0.nin_shortcut.weight",
        "decoder.conv_blocks.3.res.0.nin_shortcut.weight",
    ]
    ups = {k.split(".")[2] for k in state if "upsample" in k}
    downs = {k.split(".")[2] for k in state if "downsample" in k}
    assert ups == downs == {"0", "1", "2", "3"}
    assert state["decoder.conv_blocks.0.res.0.conv1.weight"].shape[:2] == (512, 512)
    assert state["decoder.conv_blocks.4.res.0.conv1.weight"].shape[:2] == (128, 128)
