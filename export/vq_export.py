"""A tokenizer with one map of codes -> encoder.onnx, decoder.onnx and their sites."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch.export import Dim

from ..sites import Site
from .graph_passes import find_sites, insert_size_check
from .tokenizers.vq_blocks import IMAGE_CHANNELS, VqTokenizer
from .tokenizers.vq_graphs import VqDecoderGraph, VqEncoderGraph, excluded
from .tracing import trace
from .weight_file import WeightFile

# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
EXAMPLES, HIGH, WIDE = 4, 2, 3


def export_vq(
    model: VqTokenizer, weights: WeightFile, properties: dict[str, str]
) -> tuple[Site, ...]:
    """Write both graphs, for images of any size in strides; returns their sites."""
    config = model.config
    properties = properties | {
        "arvg_trt.stride": str(config.stride),
        "arvg_trt.codebook_size": str(config.vocab_size),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.image_range": "-1,1",
    }
    sites: tuple[Site, ...] = ()
    left_out = excluded(model)
    for name, graph in (("encoder", encoder_graph(model)), ("decoder", decoder_graph(model))):
        sites += find_sites(graph.graph, name, left_out[name])
        weights.save(graph, name, properties)
    return sites


def encoder_graph(model: VqTokenizer) -> ir.Model:
    stride = model.config.stride
    image = torch.zeros(EXAMPLES, IMAGE_CHANNELS, HIGH * stride, WIDE * stride)
    sizes = ({0: Dim("batch"), 2: stride * Dim("h"), 3: stride * Dim("w")},)
    graph = trace(VqEncoderGraph(model), (image,), sizes, ["image"], ["indices", "latent"])
    insert_size_check(graph.graph, stride)
    channels = model.config.latent_channels
    indices, latent = graph.graph.outputs
    # The exporter has names of its own.
    indices.shape = ir.Shape(["batch", "h", "w"])
    latent.shape = ir.Shape(["batch", channels, "h", "w"])
    return graph


def decoder_graph(model: VqTokenizer) -> ir.Model:
    indices = torch.zeros(EXAMPLES, HIGH, WIDE, dtype=torch.int32)
    sizes = ({0: Dim("batch"), 1: Dim("h"), 2: Dim("w")},)
    return trace(VqDecoderGraph(model), (indices,), sizes, ["indices"], ["image"])
