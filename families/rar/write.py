"""A RAR transformer -> condition.onnx, step.onnx, full.onnx and their sites."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch.export import Dim

from ...export.shape import DYNAMIC, ExportShape
from ...export.sites import columns
from ...export.tracing import (
    cache_type,
    example_caches,
    name_presents,
    past_names,
    present_names,
    trace,
)
from ...export.weight_file import WeightFile
from ...graph.sites import ProducerFold, Site
from ..shared.transformer import set_cache_type
from ..shared.transformer_graphs import SiteRules, write_transformer
from .graphs import ConditionGraph, StepGraph, TeacherForcedGraph
from .model import CHUNKS, RarTransformer

ROLES = {"qkv": "qkv", "proj": "proj", "fc1": "fc1", "fc2": "fc2", "lm_head": "head", "1": "adaln"}
# Each position has a modulation of its own, so all linears may have a scale a position.
TOKEN_AXIS = dict.fromkeys(ROLES.values(), 1)
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, TOKENS, PAST = 4, 7, 5


def export_rar(
    model: RarTransformer,
    weights: WeightFile,
    properties: dict[str, str],
    form: ExportShape = DYNAMIC,
) -> tuple[Site, ...]:
    """Write the three graphs of the transformer through `weights`; returns their sites."""
    width = model.config.width
    rules = SiteRules(role, lambda path: producer_fold(path, width), TOKEN_AXIS)
    return write_transformer(transformer_graphs(model, form), rules, weights, properties)


def transformer_graphs(model: RarTransformer, form: ExportShape) -> Iterator[tuple[str, ir.Model]]:
    yield "condition", condition_graph(model)
    yield "step", step_graph(model, form)
    yield "full", teacher_forced_graph(model)


def role(path: str) -> str:
    """Return the role of a linear (qkv, proj, fc1, ...) from its official module path."""
    return ROLES[path.rpartition(".")[2]]


def condition_graph(model: RarTransformer) -> ir.Model:
    labels = torch.zeros(ROWS, dtype=torch.int64)
    return trace(
        ConditionGraph(model),
        (labels, torch.arange(TOKENS)),
        ({0: Dim("rows")}, {0: Dim("n")}),
        ["labels", "position_ids"],
        ["modulation", "head_modulation"],
    )


def step_graph(model: RarTransformer, form: ExportShape = DYNAMIC) -> ir.Model:
    config = model.config
    rows, n = Dim("rows"), Dim("n")
    shape = (ROWS, config.heads, PAST, config.head_dim)
    cache_shape = [{0: rows, 2: Dim("past")}] * config.depth
    graph = trace(
        set_cache_type(StepGraph(model), cache_type(form)),
        (
            torch.zeros(ROWS, TOKENS, dtype=torch.int64),
            torch.arange(TOKENS),
            torch.zeros(ROWS, TOKENS, config.depth, CHUNKS, config.width),
            torch.zeros(ROWS, TOKENS, 2, config.width),
            *example_caches(config.depth, shape, form),
        ),
        (
            {0: rows, 1: n},
            {0: n},
            {0: rows, 1: n},
            {0: rows, 1: n},
            cache_shape,
            cache_shape,
        ),
        ["tokens", "position_ids", "modulation", "head_modulation", *past_names(config.depth)],
        ["logits", *present_names(config.depth)],
    )
    name_presents(graph, config.heads, config.head_dim)
    return graph


def teacher_forced_graph(model: RarTransformer) -> ir.Model:
    rows = Dim("rows")
    tokens = torch.zeros(ROWS, model.config.length - 1, dtype=torch.int64)
    return trace(
        TeacherForcedGraph(model),
        (torch.zeros(ROWS, dtype=torch.int64), tokens),
        ({0: rows}, {0: rows}),
        ["labels", "tokens"],
        ["logits"],
    )


def producer_fold(path: str, width: int) -> ProducerFold | None:
    """Return where a channel scale and shift of a linear's input go.

    qkv, fc1 and lm_head read a norm times gain plus shift, both columns of a modulation linear,
    [C, 6C] in the order shift, gain, gate of the attention, then of the mlp, or [C, 2C] as gain,
    shift; the one of 1 + scale is in its bias. proj reads weighted means of values.
    """
    block, _, last = path.rpartition(".")
    if last == "lm_head":
        return columns("adaln_before_head.adaLN_modulation.1", (0, width), width)
    if last == "proj":
        return columns(f"{block}.qkv", (2 * width,), 2 * width)
    if last not in ("qkv", "fc1"):
        return None
    shift = 3 * width * (last == "fc1")
    owner = block.rpartition(".")[0]
    return columns(f"{owner}.adaLN_modulation.1", (shift, shift + width), shift)
