"""A VAR transformer -> condition.onnx, step.onnx, full.onnx and their sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim

from ..sites import FoldPart, ProducerFold, Site
from .generators.var import VarTransformer
from .generators.var_config import VarConfig
from .generators.var_graphs import ConditionGraph, FullGraph, StepGraph
from .graph_passes import module_path
from .linear_passes import columns, drop_unused, linear_sites, own
from .tracing import name_presents, past_names, present_names, trace
from .weight_file import WeightFile

ROLES = {"mat_qkv": "qkv", "proj": "proj", "fc1": "fc1", "fc2": "fc2", "head": "head"}
TOKEN_AXIS = dict.fromkeys(ROLES.values(), 1)
EMBEDDING = {"word_embed": "the embedding of latents, outside the method"}
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, TOKENS, PAST = 4, 7, 5


def export_var(
    model: VarTransformer, weights: WeightFile, properties: dict[str, str]
) -> tuple[Site, ...]:
    """Write the three graphs of the transformer through `weights`; returns their sites."""
    config = model.config
    sites: tuple[Site, ...] = ()
    for name, graph in (
        ("condition", condition_graph(model)),
        ("step", step_graph(model)),
        ("full", full_graph(model)),
    ):
        add_factors(graph.graph)
        sites += linear_sites(
            graph.graph,
            name,
            role=role,
            fold=lambda path: producer_fold(path, config),
            excluded=EMBEDDING if name == "full" else {},
            token_axis=TOKEN_AXIS,
            position_input="position_ids" if name == "step" else None,
        )
        weights.save(graph, name, properties)
    return sites


def condition_graph(model: VarTransformer) -> ir.Model:
    labels = torch.zeros(ROWS, dtype=torch.int64)
    outputs = ["x", "modulation", "head_modulation"]
    return trace(ConditionGraph(model), (labels,), ({0: Dim("rows")},), ["labels"], outputs)


def step_graph(model: VarTransformer) -> ir.Model:
    config = model.config
    rows, n, past = Dim("rows"), Dim("n"), Dim("past")
    cache = [torch.zeros(ROWS, config.heads, PAST, config.head_dim) for _ in range(config.depth)]
    cache_shape = [{0: rows, 2: past}] * config.depth
    graph = trace(
        StepGraph(model),
        (
            torch.zeros(ROWS, TOKENS, config.width),
            torch.arange(TOKENS),
            torch.zeros(ROWS, config.depth, 6, config.width),
            torch.zeros(ROWS, 2, config.width),
            cache,
            [c.clone() for c in cache],
        ),
        ({0: rows, 1: n}, {0: n}, {0: rows}, {0: rows}, cache_shape, cache_shape),
        [
            "x",
            "position_ids",
            "modulation",
            "head_modulation",
            *past_names(config.depth),
        ],
        ["logits", *present_names(config.depth)],
    )
    name_presents(graph, config.heads, config.head_dim)
    return graph


def full_graph(model: VarTransformer) -> ir.Model:
    config = model.config
    rows = Dim("rows")
    features = torch.zeros(ROWS, config.length - config.first_length, config.latent_channels)
    return trace(
        FullGraph(model),
        (torch.zeros(ROWS, dtype=torch.int64), features),
        ({0: rows}, {0: rows}),
        ["labels", "features"],
        ["logits"],
    )


def add_factors(graph: ir.Graph) -> None:
    """Put a factor of ones, `blocks.i.ada_factor`, before each block's own rows of a shared
    modulation: the shared linear's columns belong to all blocks, so what scales one block's
    goes there. The exporter would drop it.
    """
    for node in list(graph):
        block, _, last = module_path(node).rpartition(".ada_lin.")
        if node.op_type != "Add" or last != "0":
            continue
        shared, rows = node.inputs
        assert shared is not None and rows is not None and rows.shape is not None
        ones = np.ones(rows.shape.numpy(), np.float32)
        factor = own(graph, ir.val("ones", const_value=ir.tensor(ones)), f"{block}.ada_factor")
        scaled = ir.node("Mul", [shared, factor], name=f"{block}/ada_factor")
        scaled.outputs[0].name = f"{block}.scaled_rows"
        scaled.outputs[0].type, scaled.outputs[0].shape = shared.type, shared.shape
        graph.insert_before(node, scaled)
        node.replace_input_with(0, scaled.outputs[0])
        node.replace_input_with(1, own(graph, rows, f"{block}.ada_rows"))
    drop_unused(graph)


def role(path: str) -> str:
    """Of a linear by its official path."""
    if path.endswith("ada_lin.1"):
        return "adaln"
    return ROLES.get(path.rpartition(".")[2], "embedding")


def producer_fold(path: str, config: VarConfig) -> ProducerFold | None:
    """Where a channel scale and shift of a linear's input go (the fact sheet's 0.6).

    mat_qkv, fc1 and head read LN(x) * gain + shift, whose gain and shift are columns of a
    modulation linear, [C, 6C] or [C, 2C], with the one of 1 + scale in its bias; proj reads
    weighted means of values. With shared adaLN the columns belong to all blocks; each has a factor
    and rows of its own, [6C], behind the shared linear.
    """
    block, _, last = path.rpartition(".")
    width = config.width
    if last == "proj":
        qkv = f"{block}.mat_qkv"
        return columns(qkv, (2 * width,), 2 * width)
    if path == "head":
        return columns("head_nm.ada_lin.1", (0, width), width)
    if last not in ("mat_qkv", "fc1"):
        return None
    owner = block.rpartition(".")[0]
    gain = 2 * width + width * (last == "fc1")
    shift = gain + 2 * width
    if config.shared_aln:
        return own_rows(owner, (gain, shift), shift)
    return columns(f"{owner}.ada_lin.1", (gain, shift), shift)


def own_rows(block: str, starts: Sequence[int], shift: int) -> ProducerFold:
    """Parts of a block's own factor and rows behind a shared linear."""
    divide = [
        FoldPart(initializer=f"{block}.{name}", axis=0, start=start)
        for start in starts
        for name in ("ada_factor", "ada_rows")
    ]
    shifted = FoldPart(initializer=f"{block}.ada_rows", axis=0, start=shift)
    return ProducerFold(divide=tuple(divide), subtract=(shifted,))
