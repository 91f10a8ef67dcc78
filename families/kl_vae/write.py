"""Write a KL autoencoder as encoder.onnx and decoder.onnx, with their sites.

The latent of both graphs is what the generator calls tokens: the mean of the posterior times
`latent_scale`, which is in the weights of the convolutions next to it.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from ...export.passes.naming import InsertSizeCheckPass
from ...export.sites import find_sites
from ...export.tracing import trace
from ...export.weight_file import WeightFile
from ...graph.sites import Site
from ..shared.torch_graphs import TorchGraph
from ..shared.vq import IMAGE_CHANNELS
from .model import KlVae

FIRST_OR_LAST = "first or last convolution of its half"
ENCODER_EXCLUDED = dict.fromkeys(
    ("encoder.conv_in", "encoder.conv_out", "quant_conv"), FIRST_OR_LAST
)
DECODER_EXCLUDED = dict.fromkeys(
    ("post_quant_conv", "decoder.conv_in", "decoder.conv_out"), FIRST_OR_LAST
)
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
EXAMPLES, HIGH, WIDE = 4, 2, 3


def pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return the 1x1 convolution of a weight [out, in, 1, 1] and a bias [out]."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, device="meta")
    conv.weight, conv.bias = (nn.Parameter(v, requires_grad=False) for v in (weight, bias))
    return conv


class EncoderGraph(nn.Module):
    """Encode an image [N, 3, H, W] to a latent [N, C, h, w], without the log variance."""

    def __init__(self, model: KlVae, scale: float) -> None:
        super().__init__()
        self.encoder = model.encoder
        means = model.config.latent_channels
        self.quant_conv = pointwise(
            model.quant_conv.weight[:means] * scale, require(model.quant_conv.bias)[:means] * scale
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]


class DecoderGraph(nn.Module):
    """Decode a latent [N, C, h, w] to an image [N, 3, H, W], not clamped."""

    def __init__(self, model: KlVae, scale: float) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = pointwise(
            model.post_quant_conv.weight / scale, require(model.post_quant_conv.bias)
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def require(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias


def export_kl_vae(
    model: KlVae, weights: WeightFile, properties: dict[str, str], scale: float
) -> tuple[Site, ...]:
    """Write both graphs, for images of any size in strides; return their sites."""
    config = model.config
    properties = properties | {
        "arvg_trt.stride": str(config.stride),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.image_range": "-1,1",
    }
    sites: tuple[Site, ...] = ()
    for name, graph, excluded in (
        ("encoder", encoder_graph(model, scale), ENCODER_EXCLUDED),
        ("decoder", decoder_graph(model, scale), DECODER_EXCLUDED),
    ):
        sites += find_sites(graph.graph, name, excluded)
        weights.save(graph, name, properties)
    return sites


def torch_halves(model: KlVae, scale: float) -> dict[str, TorchGraph]:
    """Return in PyTorch what both graphs compute, whose latent has this scale."""
    return {
        "encoder": TorchGraph(EncoderGraph(model, scale), ("image",), ("latent",)),
        "decoder": TorchGraph(DecoderGraph(model, scale), ("latent",), ("image",)),
    }


def encoder_graph(model: KlVae, scale: float) -> ir.Model:
    config = model.config
    image = torch.zeros(EXAMPLES, IMAGE_CHANNELS, HIGH * config.stride, WIDE * config.stride)
    sizes = ({0: Dim("batch"), 2: config.stride * Dim("h"), 3: config.stride * Dim("w")},)
    graph = trace(EncoderGraph(model, scale), (image,), sizes, ["image"], ["latent"])
    InsertSizeCheckPass(config.stride)(graph)
    # The exporter has names of its own.
    graph.graph.outputs[0].shape = ir.Shape(["batch", config.latent_channels, "h", "w"])
    return graph


def decoder_graph(model: KlVae, scale: float) -> ir.Model:
    latent = torch.zeros(EXAMPLES, model.config.latent_channels, HIGH, WIDE)
    sizes = ({0: Dim("batch"), 2: Dim("h"), 3: Dim("w")},)
    return trace(DecoderGraph(model, scale), (latent,), sizes, ["latent"], ["image"])
