"""Export a tokenizer with one map of codes: encoder.onnx, decoder.onnx and their sites."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch.export import Dim

from ...export.passes.naming import InsertSizeCheckPass
from ...export.passes.norms import SplitLongNormsPass
from ...export.sites import find_sites
from ...export.tracing import trace
from ...export.weight_file import WeightFile
from ...graph.sites import Site
from .vq import IMAGE_CHANNELS, VqConfig, VqTokenizer
from .vq_graphs import TokenizerGraphs, vq_graphs

# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
EXAMPLES, HIGH, WIDE = 4, 2, 3


def export_vq(
    model: VqTokenizer,
    weights: WeightFile,
    properties: dict[str, str],
    graphs: TokenizerGraphs | None = None,
    side: int | None = None,
) -> tuple[Site, ...]:
    """Write both graphs, for images of any size in strides; return their sites.

    `graphs` are the model's halves where they are not those of `vq_graphs`. `side` is that of the
    usual map of codes: at its images' size all sums must keep their digits.
    """
    config = model.config
    graphs = graphs or vq_graphs(model)
    properties = properties | {
        "arvg_trt.stride": str(config.stride),
        "arvg_trt.codebook_size": str(config.vocab_size),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.image_range": "-1,1",
    }
    sites: tuple[Site, ...] = ()
    for name, graph, excluded in (
        ("encoder", encoder_graph(graphs, config), graphs.encoder_excluded),
        ("decoder", decoder_graph(graphs), graphs.decoder_excluded),
    ):
        SplitLongNormsPass(side)(graph)
        sites += find_sites(graph.graph, name, excluded)
        weights.save(graph, name, properties)
    return sites


def encoder_graph(graphs: TokenizerGraphs, config: VqConfig) -> ir.Model:
    stride = config.stride
    image = torch.zeros(EXAMPLES, IMAGE_CHANNELS, HIGH * stride, WIDE * stride)
    sizes = ({0: Dim("batch"), 2: stride * Dim("h"), 3: stride * Dim("w")},)
    graph = trace(graphs.encoder, (image,), sizes, ["image"], ["indices", "latent"])
    InsertSizeCheckPass(stride)(graph)
    indices, latent = graph.graph.outputs
    # The exporter has names of its own.
    indices.shape = ir.Shape(["batch", "h", "w", *group_axis(graphs)])
    latent.shape = ir.Shape(["batch", config.latent_channels, "h", "w"])
    return graph


def decoder_graph(graphs: TokenizerGraphs) -> ir.Model:
    indices = torch.zeros(EXAMPLES, HIGH, WIDE, *group_axis(graphs), dtype=torch.int32)
    sizes = ({0: Dim("batch"), 1: Dim("h"), 2: Dim("w")},)
    return trace(graphs.decoder, (indices,), sizes, ["indices"], ["image"])


def group_axis(graphs: TokenizerGraphs) -> list[int]:
    return [graphs.groups] if graphs.groups > 1 else []
