"""Decide how products in float read weights of few bits: expanded, or packed in each run.

Measured with ONNX Runtime 1.31 on one thread of a processor with VNNI, in times of FP32 (least of
25 rounds, 1024x1024 and 1024x4096): INT8 packed takes 11 to 15 at one row, 10 at eight, 1.5 at 256;
INT4 in blocks 0.6 to 1.2 at one row, 1.25 to 3.2 at two, 1.1 at 64, 1.0 at 256. So INT8 is always
expanded when a graph is opened, and INT4 where a run has more than one row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...graph.builder import constant, constant_array
from ...graph.edit import take_over
from ...graph.passes import remove_dead_nodes
from ...runtime.folders import read_spec
from ...runtime.sessions.open import EXPANDED
from ..roofline.calls import generator_calls
from ..roofline.products import graph_products

# FP32 bytes of a graph's INT4 weights. Beyond them an eighth of the memory is worth more than the
# time, of which large weights lose a quarter at most.
MOST_EXPANDED = 2**30


def weight_pairs(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that widen constants: the weights of products in float."""
    return [
        node
        for node in graph
        if node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
    ]


def mark_expanded(model: ir.Model, rows: int | None) -> bool:
    """Let a graph say that its INT4 weights are expanded when it is opened, if that is faster.

    `rows` is the most that a run of it has, None where that is not known. Returns whether it does.
    """
    blocks = [n for n in weight_pairs(model.graph) if n.attributes.get_int("block_size", 0)]
    held = [node.inputs[0].const_value for node in blocks if node.inputs[0] is not None]
    expanded = sum(4 * tensor.size for tensor in held if tensor is not None)
    if not blocks or rows == 1 or expanded > MOST_EXPANDED:
        return False
    model.metadata_props[EXPANDED] = "INT4"
    return True


def most_rows(export: Path) -> dict[str, int]:
    """Return the most rows that a weight meets in a run, by the graphs that make one image."""
    calls, graphs = generator_calls(export, 1)
    found: dict[str, int] = {}
    for call in calls:
        products = graph_products(graphs[call.graph], dict(call.axes), {})
        rows = [each.rows for each in products if each.weight is not None]
        found[call.graph] = max([found.get(call.graph, 0), *rows])
    return found


def has_fixed_shapes(export: Path) -> bool:
    """Return whether a generator has a graph for each step, which share their weights in memory."""
    _, spec = read_spec(export)
    return spec.static_batch is not None


def expand_weights(model: ir.Model) -> bool:
    """Put float32 in the place of weights of few bits; return whether there were any.

    For graphs that are opened with the weights mapped from their file, where nothing can be
    expanded once for all of them.
    """
    pairs = weight_pairs(model.graph)
    for node in pairs:
        held = node.inputs[0]
        assert held is not None
        # No name is left that has the operator's in it, by which opening a graph looks for it.
        value = constant(model.graph, f"{held.name}_expanded", expanded_weight(node))
        take_over(value, node.outputs[0])
    return remove_dead_nodes(model.graph) or bool(pairs)


def expanded_weight(node: ir.Node) -> np.ndarray:
    """Return what a DequantizeLinear makes of a constant: (q - zero) scale, in float32."""
    q, scale = (constant_array(value) for value in node.inputs[:2])
    wide = q.astype(np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant_array(node.inputs[2]).astype(np.float32)
        wide = wide - along(zero, wide.ndim, node.attributes.get_int("axis", 1))
    block = node.attributes.get_int("block_size", 0)
    if block:
        scale = np.repeat(scale, block, axis=node.attributes.get_int("axis", 1))
    else:
        scale = along(scale, wide.ndim, node.attributes.get_int("axis", 1))
    return np.asarray(wide * scale.astype(np.float32), np.float32)


def along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """Return values of one axis in a shape that broadcasts; a scalar as it is."""
    return values.reshape([-1 if k == axis else 1 for k in range(rank)]) if values.ndim else values
