"""Write a VAR transformer as condition.onnx, step.onnx and full.onnx, with their sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim

from ...export.passes.linears import named_initializer
from ...export.passes.naming import module_path
from ...export.shape import DYNAMIC, ExportShape
from ...export.sites import columns
from ...export.tracing import cache_type, name_presents, past_names, present_names, trace
from ...export.weight_file import WeightFile
from ...graph.passes import ensure, remove_unused, require
from ...graph.sites import FoldPart, ProducerFold, Site
from ..shared.transformer import set_cache_type
from ..shared.transformer_graphs import SiteRules, write_transformer
from .config import VarConfig
from .graphs import ConditionGraph, StepGraph, TeacherForcedGraph
from .model import VarTransformer

ROLES = {"mat_qkv": "qkv", "proj": "proj", "fc1": "fc1", "fc2": "fc2", "head": "head"}
TOKEN_AXIS = dict.fromkeys(ROLES.values(), 1)
EMBEDDING = {"word_embed": "the embedding of latents, outside the method"}
# Sizes of the example inputs: different, and above 1, which the exporter would specialise on.
ROWS, TOKENS, PAST = 4, 7, 5


def export_var(
    model: VarTransformer,
    weights: WeightFile,
    properties: dict[str, str],
    form: ExportShape = DYNAMIC,
) -> tuple[Site, ...]:
    """Write the graphs of the transformer through `weights`; return their sites."""
    config = model.config
    rules = SiteRules(
        role, lambda path: producer_fold(path, config), TOKEN_AXIS, {"full": EMBEDDING}
    )
    return write_transformer(transformer_graphs(model, form), rules, weights, properties)


def transformer_graphs(model: VarTransformer, form: ExportShape) -> Iterator[tuple[str, ir.Model]]:
    """Yield names and graphs, one at a time; the full one always has dynamic rows."""
    steps = form.step_names(len(model.config.patch_nums))
    factors = ModulationFactorsPass()
    yield "condition", factors(condition_graph(model, form)).model
    for scale, name in enumerate(steps):
        yield name, factors(step_graph(model, form, scale)).model
    yield "full", factors(teacher_forced_graph(model)).model


def condition_graph(model: VarTransformer, form: ExportShape = DYNAMIC) -> ir.Model:
    labels = torch.zeros(form.rows or ROWS, dtype=torch.int64)
    dynamic = None if form.rows else ({0: Dim("rows")},)
    outputs = ["x", "modulation", "head_modulation"]
    return trace(ConditionGraph(model), (labels,), dynamic, ["labels"], outputs)


def step_graph(model: VarTransformer, form: ExportShape = DYNAMIC, scale: int = 0) -> ir.Model:
    """Return the graph of any step, or with fixed shapes that of `scale`.

    The graph of the first scale then has no `past_*`.
    """
    config = model.config
    bounds = config.bounds
    fixed = form.rows is not None
    rows = form.rows or ROWS
    n, past = (bounds[scale + 1] - bounds[scale], bounds[scale]) if fixed else (TOKENS, PAST)
    blocks = range(config.depth if past else 0)
    shape = (rows, config.heads, past, config.head_dim)
    cache = [torch.zeros(shape, dtype=getattr(torch, form.kv_type)) for _ in blocks]
    dynamic = None if fixed else step_dynamics(config.depth)
    graph = trace(
        set_cache_type(StepGraph(model), cache_type(form)),
        (
            torch.zeros(rows, n, config.width),
            torch.arange(n),
            torch.zeros(rows, config.depth, 6, config.width),
            torch.zeros(rows, 2, config.width),
            cache,
            [c.clone() for c in cache],
        ),
        dynamic,
        ["x", "position_ids", "modulation", "head_modulation", *past_names(len(blocks))],
        ["logits", *present_names(config.depth)],
    )
    if not fixed:
        name_presents(graph, config.heads, config.head_dim)
    return graph


def step_dynamics(depth: int) -> tuple[object, ...]:
    rows, n, past = Dim("rows"), Dim("n"), Dim("past")
    cache = [{0: rows, 2: past}] * depth
    return {0: rows, 1: n}, {0: n}, {0: rows}, {0: rows}, cache, cache


def teacher_forced_graph(model: VarTransformer) -> ir.Model:
    config = model.config
    rows = Dim("rows")
    features = torch.zeros(ROWS, config.length - config.first_length, config.latent_channels)
    return trace(
        TeacherForcedGraph(model),
        (torch.zeros(ROWS, dtype=torch.int64), features),
        ({0: rows}, {0: rows}),
        ["labels", "features"],
        ["logits"],
    )


class ModulationFactorsPass(ir.passes.InPlacePass):
    """Put a factor of ones, `blocks.i.ada_factor`, before each block's own rows.

    The columns of a shared modulation linear belong to all blocks, so what scales one block's goes
    into its factor. The exporter would drop it.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for rows of a block that are no constant."""
        rows = ((block, node.inputs[1]) for block, node in without_factor(model.graph))
        require(
            f"the rows of {block} are no constant"
            for block, value in rows
            if value is None or value.const_value is None
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for block, node in without_factor(graph):
            add_factor(graph, block, node)
            modified = True
        modified |= remove_unused(graph)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for a block without a factor."""
        ensure(f"{block} has no factor" for block, _ in without_factor(model.graph))


def without_factor(graph: ir.Graph) -> Iterator[tuple[str, ir.Node]]:
    """Yield (block, Add of its own rows to the shared modulation) where no factor is before it."""
    for node in list(graph):
        block, _, last = module_path(node).rpartition(".ada_lin.")
        if node.op_type == "Add" and last == "0":
            maker = None if node.inputs[0] is None else node.inputs[0].producer()
            if maker is None or maker.name != f"{block}/ada_factor":
                yield block, node


def add_factor(graph: ir.Graph, block: str, node: ir.Node) -> None:
    """Multiply what the shared linear gives a block by its factor, in front of the Add `node`."""
    shared, rows = node.inputs
    assert shared is not None and rows is not None and rows.shape is not None
    ones = np.ones(rows.shape.numpy(), np.float32)
    factor = named_initializer(
        graph, ir.val("ones", const_value=ir.tensor(ones)), f"{block}.ada_factor"
    )
    scaled = ir.node("Mul", [shared, factor], name=f"{block}/ada_factor")
    scaled.outputs[0].name = f"{block}.scaled_rows"
    scaled.outputs[0].type, scaled.outputs[0].shape = shared.type, shared.shape
    graph.insert_before(node, scaled)
    node.replace_input_with(0, scaled.outputs[0])
    node.replace_input_with(1, named_initializer(graph, rows, f"{block}.ada_rows"))


def role(path: str) -> str:
    """Return the role of a linear (qkv, proj, fc1, ...) from its module path."""
    if path.endswith("ada_lin.1"):
        return "adaln"
    return ROLES.get(path.rpartition(".")[2], "embedding")


def producer_fold(path: str, config: VarConfig) -> ProducerFold | None:
    """Return where a channel scale and shift of a linear's input fold to.

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
        return block_rows(owner, (gain, shift), shift)
    return columns(f"{owner}.ada_lin.1", (gain, shift), shift)


def block_rows(block: str, starts: Sequence[int], shift: int) -> ProducerFold:
    """Return the parts of a block's own factor and rows behind a shared linear."""
    divide = [
        FoldPart(initializer=f"{block}.{name}", axis=0, start=start)
        for start in starts
        for name in ("ada_factor", "ada_rows")
    ]
    shifted = FoldPart(initializer=f"{block}.ada_rows", axis=0, start=shift)
    return ProducerFold(divide=tuple(divide), subtract=(shifted,))
