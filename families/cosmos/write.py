"""Write a Cosmos tokenizer as encoder.onnx and decoder.onnx."""

from __future__ import annotations

import math
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from ...export.passes.naming import InsertSizeCheckPass, NameNodesPass, SignPass
from ...export.passes.norms import SplitLongNormsPass, marked
from ...export.sites import find_sites
from ...export.tracing import OPSET, exporter
from ...graph.passes import Sequential
from ...graph.sites import Site
from ...workspace.facts import TokenizerFacts
from .config import CosmosConfig
from .model import CosmosTokenizer

FIRST_OR_LAST = "first or last convolution of its half"
FIXED = "fixed Haar transform"


class EncoderGraph(nn.Module):
    """Encode an image to (indices, latent) for DI, to the latent for CI."""

    def __init__(self, model: CosmosTokenizer) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv
        self.quantizer = model.quantizer

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        latent = self.quant_conv(self.encoder(image))
        return latent if self.quantizer is None else (self.quantizer.indices(latent), latent)


class DecoderGraph(nn.Module):
    """Decode indices (DI) or a latent (CI) to an image."""

    def __init__(self, model: CosmosTokenizer) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv
        self.quantizer = model.quantizer

    def forward(self, tokens: Tensor) -> Tensor:
        codes = tokens if self.quantizer is None else self.quantizer.codes(tokens)
        return self.decoder(self.post_quant_conv(codes))  # type: ignore[no-any-return]


def export_tokenizer(model: CosmosTokenizer, folder: Path, name: str) -> tuple[Site, ...]:
    """Write encoder.onnx and decoder.onnx into `folder`; return the sites of both."""
    config = model.config
    stride = config.spatial_compression
    properties = {
        "arvg_trt.model": name,
        "arvg_trt.stride": str(stride),
        "arvg_trt.levels": ",".join(map(str, config.levels)),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.image_range": "-1,1",
    }
    image = torch.zeros(2, 3, 2 * stride, 3 * stride)
    h, w = Dim("h"), Dim("w")
    encoder = trace(
        EncoderGraph(model),
        image,
        {0: "batch", 2: stride * h, 3: stride * w},
        "image",
        ["indices", "latent"] if config.discrete else ["latent"],
    )
    InsertSizeCheckPass(stride)(encoder)
    sites = find_sites(encoder.graph, "encoder", encoder_high_precision())
    save_graph(encoder, folder / "encoder.onnx", properties)
    del encoder

    tokens = torch.zeros(2, 2, 3, dtype=torch.int32)
    latent = torch.zeros(2, config.latent_channels, 2, 3)
    decoder = trace(
        DecoderGraph(model),
        tokens if config.discrete else latent,
        {0: "batch", 1: "h", 2: "w"} if config.discrete else {0: "batch", 2: "h", 3: "w"},
        "indices" if config.discrete else "latent",
        ["image"],
    )
    sites += find_sites(decoder.graph, "decoder", decoder_high_precision())
    save_graph(decoder, folder / "decoder.onnx", properties)
    return sites


def encoder_high_precision() -> dict[str, str]:
    return {
        "encoder.patcher": FIXED,
        "encoder.conv_in": FIRST_OR_LAST,
        "encoder.conv_out": FIRST_OR_LAST,
        "quant_conv": FIRST_OR_LAST,
    }


def decoder_high_precision() -> dict[str, str]:
    return {
        "post_quant_conv": FIRST_OR_LAST,
        "decoder.conv_in": FIRST_OR_LAST,
        "decoder.conv_out": FIRST_OR_LAST,
        "decoder.unpatcher": FIXED,
    }


def trace(
    module: nn.Module,
    example: Tensor,
    dynamic: dict[int, object],
    input_name: str,
    output_names: list[str],
) -> ir.Model:
    """Export a module to ONNX at opset 21; 23 would make Attention, which engines refuse."""
    with exporter():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    passes = Sequential(NameNodesPass(), SplitLongNormsPass(drifting=marked(module)))
    return passes(program.model).model


def save_graph(model: ir.Model, path: Path, properties: dict[str, str]) -> None:
    """Save a graph, with its weights beside it, so that stages can share and map them."""
    SignPass(properties)(model)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def tokenizer_facts(config: CosmosConfig) -> TokenizerFacts:
    """Return what later stages need to know of the tokenizer."""
    return TokenizerFacts(
        stride=config.spatial_compression,
        discrete=config.discrete,
        levels=config.levels,
        latent_channels=config.latent_channels,
        codebook_size=math.prod(config.levels) if config.discrete else None,
    )
