"""Write a MAR as pass.onnx and denoise.onnx, with their sites."""

from __future__ import annotations

import msgspec
import onnx_ir as ir
import torch
from torch.export import Dim

from ...export.passes.linears import NameParametersPass, norm_parameters
from ...export.sites import columns, linear_sites
from ...export.tracing import trace
from ...export.weight_file import WeightFile
from ...graph.sites import FoldPart, ProducerFold, Site
from .config import MarConfig
from .graphs import DenoiseGraph, PassGraph
from .model import MarTransformer
from .position_ids import (
    TIME_POSITION_ID,
    TIME_POSITIONS,
    add_position_ids,
    add_time_position,
    numbered,
)

ROLES = {
    "qkv": "qkv",
    "proj": "proj",
    "fc1": "fc1",
    "fc2": "fc2",
    "z_proj": "embed",
    "decoder_embed": "embed",
    "cond_embed": "embed",
    "input_proj": "embed",
    "0": "fc1",
    "2": "fc2",
    "1": "adaln",
    "linear": "head",
}
# Along a sequence lie the buffer, then the tokens, known ones first.
TOKEN_AXIS = dict.fromkeys(("qkv", "proj", "fc1", "fc2"), 1)
EMBEDS = "first product of raw tokens or between the transformers"
DENOISES = "the diffusion's network stays in high precision"
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, KNOWN = 4, 5


def export_mar(
    model: MarTransformer, weights: WeightFile, properties: dict[str, str]
) -> tuple[Site, ...]:
    """Write both graphs of the model through `weights`; return their sites."""
    head_width = model.config.head_width
    graph = pass_graph(model)
    sites = linear_sites(
        graph.graph,
        "pass",
        role=lambda path: ROLES[path.rpartition(".")[2]],
        fold=lambda path: pass_fold(path, model.config),
        excluded={
            "z_proj": EMBEDS,
            "decoder_embed": EMBEDS,
            "diffloss.net.cond_embed": DENOISES,
        },
        token_axis=TOKEN_AXIS,
        position_input=None,
    )
    sites = tuple(numbered(site, model.config) for site in sites)
    weights.save(graph, "pass", properties)
    graph = denoise_graph(model)
    linears = (n for n, m in DenoiseGraph(model).named_modules() if isinstance(m, torch.nn.Linear))
    denoise_sites = linear_sites(
        graph.graph,
        "denoise",
        role=lambda path: ROLES[path.rpartition(".")[2]],
        fold=lambda path: denoise_fold(path, head_width),
        excluded=dict.fromkeys(linears, DENOISES),
        token_axis=dict.fromkeys(ROLES.values(), 0),
        position_input=TIME_POSITION_ID,
    )
    timed = (msgspec.structs.replace(site, positions=TIME_POSITIONS) for site in denoise_sites)
    sites += tuple(timed)
    weights.save(graph, "denoise", properties)
    return sites


def pass_graph(model: MarTransformer) -> ir.Model:
    config, rows = model.config, Dim("rows")
    graph = trace(
        PassGraph(model),
        (
            torch.zeros(ROWS, dtype=torch.int64),
            torch.zeros(ROWS, KNOWN, config.latent_channels),
            torch.arange(config.length).repeat(ROWS, 1),
        ),
        ({0: rows}, {0: rows, 1: Dim("n", max=config.length - 1)}, {0: rows}),
        ["labels", "tokens", "position_ids"],
        ["z", "condition"],
    )
    NameParametersPass(norm_parameters)(graph)
    widths = (config.decoder_width, config.head_width)
    for value, width in zip(graph.graph.outputs, widths, strict=True):
        # The exporter has a name of its own for the number of unknown tokens.
        value.shape = ir.Shape(["rows", f"{config.length} - n", width])
    add_position_ids(graph.graph, config.buffer, config.length)
    return graph


def denoise_graph(model: MarTransformer) -> ir.Model:
    config, m = model.config, Dim("m")
    graph = trace(
        DenoiseGraph(model),
        (
            torch.zeros(ROWS, config.latent_channels),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(ROWS, config.head_width),
        ),
        ({0: m}, None, {0: m}),
        ["x", "time", "condition"],
        ["noise", "spread"],
    )
    NameParametersPass(norm_parameters)(graph)
    add_time_position(graph.graph)
    return graph


def pass_fold(path: str, config: MarConfig) -> ProducerFold | None:
    """Return where a channel scale and shift of a linear's input in a pass fold to.

    qkv and fc1 read a norm with weight and bias; proj reads weighted means of values.
    """
    block, _, last = path.rpartition(".")
    if last == "proj":
        width = config.decoder_width if path.startswith("decoder_blocks.") else config.width
        return columns(f"{block}.qkv", (2 * width,), 2 * width)
    norm = {"qkv": "norm1", "fc1": "norm2"}.get(last)
    if norm is None:
        return None
    name = f"{block.rpartition('.')[0]}.{norm}"
    bias = FoldPart(initializer=f"{name}.bias", axis=0, start=0)
    weight = FoldPart(initializer=f"{name}.weight", axis=0, start=0)
    return ProducerFold(divide=(weight, bias), subtract=(bias,))


def denoise_fold(path: str, width: int) -> ProducerFold | None:
    """Return the fold of a denoiser's linear into the columns of a modulation.

    mlp.0 and the last linear read a norm times gain plus shift. The columns are in the order shift,
    gain and, in blocks, gate; the one of 1 + scale is in the bias.
    """
    owner, _, last = path.rpartition(".")
    if last == "linear":
        return columns(f"{owner}.adaLN_modulation.1", (0, width), 0)
    if last == "0":
        return columns(f"{owner.rpartition('.')[0]}.adaLN_modulation.1", (0, width), 0)
    return None
