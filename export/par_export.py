"""A PAR transformer -> step.onnx, full.onnx and their sites."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch.export import Dim

from ..sites import FoldPart, ProducerFold, Site
from .generators.blocks import keep_cache_as
from .generators.par import ParTransformer
from .generators.par_graphs import FullGraph, StepGraph
from .graph_form import DYNAMIC, GraphForm
from .graph_passes import module_path
from .linear_passes import drop_unused, linear_sites, own
from .tracing import (
    cache_type,
    example_caches,
    name_presents,
    past_names,
    present_names,
    trace,
)
from .weight_file import WeightFile

ROLES = {"wqkv": "qkv", "wo": "proj", "w1": "fc1", "w3": "fc1", "w2": "fc2", "output": "head"}
TOKEN_AXIS = dict.fromkeys(ROLES.values(), 1)
NORMS = {"wqkv": "attention_norm", "w1": "ffn_norm", "w3": "ffn_norm"}
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, TOKENS, PAST = 4, 7, 5


def export_par(
    model: ParTransformer,
    weights: WeightFile,
    properties: dict[str, str],
    form: GraphForm = DYNAMIC,
) -> tuple[Site, ...]:
    """Write both graphs of the transformer through `weights`; returns their sites."""
    width = model.config.width
    sites: tuple[Site, ...] = ()
    for name, graph in (("step", step_graph(model, form)), ("full", full_graph(model))):
        own_norms(graph.graph)
        sites += linear_sites(
            graph.graph,
            name,
            role=lambda path: ROLES[path.rpartition(".")[2]],
            fold=lambda path: producer_fold(path, width),
            excluded={},
            token_axis=TOKEN_AXIS,
            position_input=None if name == "full" else "position_ids",
        )
        weights.save(graph, name, properties)
    return sites


def step_graph(model: ParTransformer, form: GraphForm = DYNAMIC) -> ir.Model:
    config = model.config
    rows, n = Dim("rows"), Dim("n")
    cache_shape = [{0: rows, 2: Dim("past")}] * config.depth
    graph = trace(
        keep_cache_as(StepGraph(model), cache_type(form)),
        (
            torch.zeros(ROWS, TOKENS, dtype=torch.int64),
            torch.arange(TOKENS),
            *example_caches(config.depth, (ROWS, config.heads, PAST, config.head_dim), form),
        ),
        ({0: rows, 1: n}, {0: n}, cache_shape, cache_shape),
        ["tokens", "position_ids", *past_names(config.depth)],
        ["logits", *present_names(config.depth)],
    )
    keep_cache_as(model, None)  # the graph's layers are the model's own
    name_presents(graph, config.heads, config.head_dim)
    return graph


def full_graph(model: ParTransformer) -> ir.Model:
    config = model.config
    rows = Dim("rows")
    tokens = torch.zeros(ROWS, config.length - config.group, dtype=torch.int64)
    return trace(
        FullGraph(model),
        (torch.zeros(ROWS, dtype=torch.int64), tokens),
        ({0: rows}, {0: rows}),
        ["labels", "tokens"],
        ["logits"],
    )


def own_norms(graph: ir.Graph) -> None:
    """Every norm has a weight of its own, `path.weight`; the exporter merges equal ones."""
    for node in graph:
        path = module_path(node)
        if node.op_type != "Mul" or not path.endswith("norm"):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                node.replace_input_with(index, own(graph, value, f"{path}.weight"))
    drop_unused(graph)


def producer_fold(path: str, width: int) -> ProducerFold:
    """Where a channel scale of a linear's input goes (the fact sheet's 0.6).

    There are no biases to take a shift. wqkv, w1, w3 and output read a norm; wo reads weighted
    means of values, the last of wqkv's columns [C, 3C]; w2 reads products with what w3 gives.
    """
    owner, _, last = path.rpartition(".")
    if last == "wo":
        return divided(f"{owner}.wqkv.weight", 1, 2 * width)
    if last == "w2":
        return divided(f"{owner}.w3.weight", 1)
    norm = f"{owner.rpartition('.')[0]}.{NORMS[last]}" if last in NORMS else "norm"
    return divided(f"{norm}.weight", 0)


def divided(initializer: str, axis: int, start: int = 0) -> ProducerFold:
    part = FoldPart(initializer=initializer, axis=axis, start=start)
    return ProducerFold(divide=(part,), subtract=())
