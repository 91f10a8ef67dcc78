"""A MAR -> pass.onnx, denoise.onnx and their sites."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim

from ..sites import FoldPart, ProducerFold, Site
from .generators.mar import MarTransformer
from .generators.mar_graphs import DenoiseGraph, PassGraph
from .linear_passes import columns, linear_sites, own_norms
from .tracing import trace
from .weight_file import WeightFile

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
# Values of the pass with the number of each row's place, which its arithmetic does not need.
ENCODER_PLACES, DECODER_PLACES = "encoder_places", "decoder_places"


def export_mar(
    model: MarTransformer, weights: WeightFile, properties: dict[str, str]
) -> tuple[Site, ...]:
    """Write both graphs of the model through `weights`; returns their sites."""
    width, head_width = model.config.width, model.config.head_width
    graph = pass_graph(model)
    sites = linear_sites(
        graph.graph,
        "pass",
        role=lambda path: ROLES[path.rpartition(".")[2]],
        fold=lambda path: pass_fold(path, width),
        excluded={
            "z_proj": EMBEDS,
            "decoder_embed": EMBEDS,
            "diffloss.net.cond_embed": DENOISES,
        },
        token_axis=TOKEN_AXIS,
        position_input=None,
    )
    sites = numbered(sites, model.config.buffer, model.config.length)
    weights.save(graph, "pass", properties)
    graph = denoise_graph(model)
    linears = (n for n, m in DenoiseGraph(model).named_modules() if isinstance(m, torch.nn.Linear))
    sites += linear_sites(
        graph.graph,
        "denoise",
        role=lambda path: ROLES[path.rpartition(".")[2]],
        fold=lambda path: denoise_fold(path, head_width),
        excluded=dict.fromkeys(linears, DENOISES),
        token_axis={},
        position_input=None,
    )
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
    own_norms(graph.graph)
    for value, width in zip(graph.graph.outputs, (config.width, config.head_width), strict=True):
        # The exporter has a name of its own for the number of unknown tokens.
        value.shape = ir.Shape(["rows", f"{config.length} - n", width])
    add_places(graph.graph, config.buffer, config.length)
    return graph


def add_places(graph: ir.Graph, buffer: int, length: int) -> None:
    """Make `ENCODER_PLACES` [rows, b + n] and `DECODER_PLACES` [rows, b + L].

    Of the buffer's rows 0 to b - 1, of a known token b + its place in the raster, of an unknown
    one, another vector at the same place, L more.
    """
    _, tokens, position_ids = graph.inputs
    made: list[ir.Node] = []

    def held(name: str, *numbers: int) -> ir.Value:
        tensor = ir.tensor(np.array(numbers, np.int64), name=f"places.{name}")
        value = ir.Value(name=tensor.name, const_value=tensor)
        value.shape, value.type = ir.Shape([len(numbers)]), ir.TensorType(tensor.dtype)
        graph.register_initializer(value)
        return value

    def add(
        op: str, inputs: Sequence[ir.Value], name: str, sizes: Sequence[int | str], **options: int
    ) -> ir.Value:
        node = ir.node(op, inputs, options, name=f"places/{name}")
        value = node.outputs[0]
        value.name, value.type = name, ir.TensorType(ir.DataType.INT64)
        value.shape = ir.Shape(sizes)
        made.append(node)
        return value

    count = add("Shape", [tokens], "places.n", [1], start=1, end=2)
    rows = add("Shape", [position_ids], "places.rows", [1], start=0, end=1)
    sizes = add("Concat", [rows, held("buffer", buffer)], "places.sizes", [2], axis=0)
    first = add("Expand", [held("first", *range(buffer)), sizes], "places.0", ["rows", buffer])
    zero, axis, end = held("zero", 0), held("axis", 1), held("end", length)
    known = add("Slice", [position_ids, zero, count, axis], "places.1", ["rows", "n"])
    known = add("Add", [known, held("known", buffer)], "places.2", ["rows", "n"])
    left = f"{length} - n"
    unknown = add("Slice", [position_ids, count, end, axis], "places.3", ["rows", left])
    unknown = add("Add", [unknown, held("unknown", buffer + length)], "places.4", ["rows", left])
    add("Concat", [first, known], ENCODER_PLACES, ["rows", f"{buffer} + n"], axis=1)
    add("Concat", [first, known, unknown], DECODER_PLACES, ["rows", buffer + length], axis=1)
    graph.insert_before(graph[0], made)


def numbered(sites: Sequence[Site], buffer: int, length: int) -> tuple[Site, ...]:
    """Sites with the numbers of their rows' places."""
    found = []
    for site in sites:
        if site.token_axis is not None:
            encodes = site.name.startswith("encoder")
            site = msgspec.structs.replace(
                site,
                position_input=ENCODER_PLACES if encodes else DECODER_PLACES,
                positions=buffer + (1 if encodes else 2) * length,
            )
        found.append(site)
    return tuple(found)


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
    own_norms(graph.graph)
    return graph


def pass_fold(path: str, width: int) -> ProducerFold | None:
    """Where a channel scale and shift of a linear's input go (the fact sheet's 0.6).

    qkv and fc1 read a norm with weight and bias; proj reads weighted means of values.
    """
    block, _, last = path.rpartition(".")
    if last == "proj":
        return columns(f"{block}.qkv", (2 * width,), 2 * width)
    norm = {"qkv": "norm1", "fc1": "norm2"}.get(last)
    if norm is None:
        return None
    name = f"{block.rpartition('.')[0]}.{norm}"
    bias = FoldPart(initializer=f"{name}.bias", axis=0, start=0)
    weight = FoldPart(initializer=f"{name}.weight", axis=0, start=0)
    return ProducerFold(divide=(weight, bias), subtract=(bias,))


def denoise_fold(path: str, width: int) -> ProducerFold | None:
    """mlp.0 and the last linear read a norm times gain plus shift, columns of a modulation.

    These are in the order shift, gain and, in blocks, gate; the one of 1 + scale is in the bias.
    """
    owner, _, last = path.rpartition(".")
    if last == "linear":
        return columns(f"{owner}.adaLN_modulation.1", (0, width), 0)
    if last == "0":
        return columns(f"{owner.rpartition('.')[0]}.adaLN_modulation.1", (0, width), 0)
    return None
