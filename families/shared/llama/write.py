"""LlamaGen's transformer -> step.onnx, full.onnx and their sites."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch.export import Dim

from ....export.passes.linears import NameParametersPass, Parameter
from ....export.passes.naming import module_path
from ....export.shape import DYNAMIC, ExportShape
from ....export.tracing import (
    cache_type,
    example_caches,
    name_presents,
    past_names,
    present_names,
    trace,
)
from ....export.weight_file import WeightFile
from ....graph.sites import FoldPart, ProducerFold, Site
from ..transformer import set_cache_type
from ..transformer_graphs import SiteRules, write_transformer
from .graphs import StepGraph, TeacherForcedGraph
from .model import LlamaTransformer

ROLES = {"wqkv": "qkv", "wo": "proj", "w1": "fc1", "w3": "fc1", "w2": "fc2", "output": "head"}
TOKEN_AXIS = dict.fromkeys(ROLES.values(), 1)
NORMS = {"wqkv": "attention_norm", "w1": "ffn_norm", "w3": "ffn_norm"}
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, TOKENS, PAST = 4, 7, 5


def export_llama(
    model: LlamaTransformer,
    weights: WeightFile,
    properties: dict[str, str],
    form: ExportShape = DYNAMIC,
) -> tuple[Site, ...]:
    """Write both graphs of the transformer through `weights`; returns their sites."""
    rules = site_rules(model.config.width)
    return write_transformer(transformer_graphs(model, form), rules, weights, properties)


def site_rules(width: int) -> SiteRules:
    """Return what the linears are, and where their inputs' scales go."""
    return SiteRules(role, lambda path: producer_fold(path, width), TOKEN_AXIS)


def transformer_graphs(
    model: LlamaTransformer, form: ExportShape
) -> Iterator[tuple[str, ir.Model]]:
    yield "step", NameParametersPass(norm_weights)(step_graph(model, form)).model
    yield "full", NameParametersPass(norm_weights)(teacher_forced_graph(model)).model


def role(path: str) -> str:
    """Return the role of a linear (qkv, proj, fc1, …) from its official module path."""
    return ROLES[path.rpartition(".")[2]]


def step_graph(model: LlamaTransformer, form: ExportShape = DYNAMIC) -> ir.Model:
    config, n = model.config, model.at_once
    rows = Dim("rows")
    dims = [] if n else [Dim("n")]  # of the axis of tokens, where steps differ
    cache_shape = [{0: rows, 2: Dim("past")}] * config.depth
    graph = trace(
        set_cache_type(StepGraph(model), cache_type(form)),
        (
            torch.zeros(ROWS, n or TOKENS, dtype=torch.int64),
            torch.arange(n or TOKENS),
            *example_caches(config.depth, (ROWS, config.heads, PAST, config.head_dim), form),
        ),
        (
            dict(enumerate([rows, *dims])),
            dict(enumerate(dims)),
            cache_shape,
            cache_shape,
        ),
        ["tokens", "position_ids", *past_names(config.depth)],
        ["logits", *present_names(config.depth)],
    )
    set_cache_type(model, None)  # the graph's layers are the model's own
    name_presents(graph, config.heads, config.head_dim, str(n or "n"))
    return graph


def teacher_forced_graph(model: LlamaTransformer) -> ir.Model:
    rows = Dim("rows")
    return trace(
        TeacherForcedGraph(model),
        (torch.zeros(ROWS, dtype=torch.int64), torch.zeros(ROWS, model.shown, dtype=torch.int64)),
        ({0: rows}, {0: rows}),
        ["labels", "tokens"],
        ["logits"],
    )


def norm_weights(graph: ir.Graph) -> Iterator[Parameter]:
    """Yield the weights that the modules of norms multiply with, to be called `path.weight`."""
    for node in graph:
        path = module_path(node)
        if node.op_type != "Mul" or not path.endswith("norm"):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                yield node, index, value, f"{path}.weight"


def producer_fold(path: str, width: int) -> ProducerFold:
    """Return where a channel scale of a linear's input goes.

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
