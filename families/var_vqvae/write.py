"""Write VAR's tokenizer as encoder, decoder, lookup and update.{k}.onnx, with their sites."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from msgspec.structs import replace
from torch import nn
from torch.export import Dim

from ...export.shape import DYNAMIC, ExportShape
from ...export.sites import find_sites
from ...export.tracing import trace
from ...export.weight_file import WeightFile
from ...graph.sites import Site
from .graphs import (
    VarDecoderGraph,
    VarEncoderGraph,
    VarLookupGraph,
    VarTokensGraph,
    VarUpdateGraph,
    decoder_excluded,
    encoder_excluded,
    lookup_excluded,
    tokens_excluded,
    update_excluded,
)
from .model import VarVqvae

EXAMPLES = 2  # the exporter would specialise on a batch of one


def export_var_tokenizer(
    model: VarVqvae,
    weights: WeightFile,
    properties: dict[str, str],
    word_embed: nn.Linear,
    form: ExportShape = DYNAMIC,
) -> tuple[Site, ...]:
    """Write all graphs of the tokenizer through `weights`; return their sites.

    `word_embed` is the transformer's, for update.{k}; those and the lookup have no site that the
    method takes. `form` is that of the graphs that generate: the encoder and the lookup have a
    dynamic batch in any.
    """
    quantizer = model.quantize
    sites: tuple[Site, ...] = ()
    codec = codec_properties(model, properties)
    if form.static_batch:
        codec["arvg_trt.batch"] = str(form.static_batch)
    for name, graph, excluded in (
        ("encoder", encoder_graph(model), encoder_excluded(quantizer)),
        ("decoder", decoder_graph(model, form), decoder_excluded()),
        ("lookup", lookup_graph(model), lookup_excluded(quantizer)),
    ):
        sites += sites_by_name(graph, name, excluded)
        weights.save(graph, name, codec)
    for scale in range(quantizer.last + 1):
        name, graph = f"update.{scale}", update_graph(model, scale, word_embed, form)
        sites += sites_by_name(graph, name, update_excluded(quantizer, scale))
        weights.save(graph, name, properties)
    return sites


def export_var_vqvae(
    model: VarVqvae, weights: WeightFile, properties: dict[str, str]
) -> tuple[Site, ...]:
    """Write encoder and decoder of the tokenizer alone through `weights`; return their sites."""
    quantizer = model.quantize
    sites: tuple[Site, ...] = ()
    for name, graph, excluded in (
        ("encoder", encoder_graph(model), encoder_excluded(quantizer)),
        ("decoder", tokens_graph(model), tokens_excluded(quantizer)),
    ):
        found = sites_by_name(graph, name, excluded)
        sites += found if name == "encoder" else tuple(map(named_as_lookup, found))
        weights.save(graph, name, codec_properties(model, properties))
    return sites


def named_as_lookup(site: Site) -> Site:
    """Return a decoder's site with a name of its own: a plan has one entry a name."""

    def own(name: str) -> str:
        return f"lookup.{name.removeprefix('quantize.')}" if name.startswith("quantize.") else name

    shared = tuple(map(own, site.shares_input_with))
    return replace(site, name=own(site.name), shares_input_with=shared)


def codec_properties(model: VarVqvae, properties: dict[str, str]) -> dict[str, str]:
    """Return what encoder and decoder say of themselves."""
    config = model.config
    return properties | {
        "arvg_trt.stride": str(config.image_size // config.latent_size),
        "arvg_trt.image_size": str(config.image_size),
        "arvg_trt.codebook_size": str(config.vocab_size),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.tokens": str(sum(config.lengths)),
        "arvg_trt.image_range": "-1,1",
    }


def encoder_graph(model: VarVqvae) -> ir.Model:
    size = model.config.image_size
    image = torch.zeros(EXAMPLES, 3, size, size)
    batch = ({0: Dim("batch")},)
    return trace(VarEncoderGraph(model), (image,), batch, ["image"], ["indices", "latent"])


def decoder_graph(model: VarVqvae, form: ExportShape = DYNAMIC) -> ir.Model:
    latent = torch.zeros(form.static_batch or EXAMPLES, *model.config.latent_shape)
    dynamic = None if form.static_batch else ({0: Dim("batch")},)
    return trace(VarDecoderGraph(model), (latent,), dynamic, ["latent"], ["image"])


def tokens_graph(model: VarVqvae) -> ir.Model:
    indices = torch.zeros(EXAMPLES, sum(model.config.lengths), dtype=torch.int32)
    return trace(VarTokensGraph(model), (indices,), ({0: Dim("batch")},), ["indices"], ["image"])


def lookup_graph(model: VarVqvae) -> ir.Model:
    indices = torch.zeros(EXAMPLES, sum(model.config.lengths), dtype=torch.int32)
    graph, outputs = VarLookupGraph(model.quantize), ["latent", "features"]
    return trace(graph, (indices,), ({0: Dim("batch")},), ["indices"], outputs)


def update_graph(
    model: VarVqvae, scale: int, word_embed: nn.Linear, form: ExportShape = DYNAMIC
) -> ir.Model:
    rows, batch = form.rows or EXAMPLES, Dim("batch")
    tokens = torch.zeros(rows, model.config.lengths[scale], dtype=torch.int64)
    f_hat = torch.zeros(rows, *model.config.latent_shape)
    return trace(
        VarUpdateGraph(model.quantize, scale, word_embed),
        (tokens, f_hat),
        None if form.rows else ({0: batch}, {0: batch}),
        ["tokens", "f_hat"],
        ["f_hat_next"] if scale == model.quantize.last else ["f_hat_next", "x"],
    )


def sites_by_name(
    graph: ir.Model, graph_name: str, excluded: Mapping[str, str]
) -> tuple[Site, ...]:
    """Return one site per module: the scales share convolutions and the codebook."""
    found: dict[str, Site] = {}
    for site in find_sites(graph.graph, graph_name, excluded):
        found.setdefault(site.name, site)
    return tuple(found.values())
