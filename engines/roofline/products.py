"""Count the operations and values of each product in a graph: convolutions, linears, attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx

from .shapes import Axes, GraphShapes

# Scores of an attention stay on the chip where it is one kernel, as engines build it.
SCORES = {"bmm_qk": "output", "bmm_pv": "left"}


@dataclass(frozen=True, slots=True)
class Product:
    """Count what a product of one run takes; `weight` names its initializer, None for attention.

    `rows` is how many vectors meet the weight. `weights`, `inputs` and `outputs` are values that
    pass through memory.
    """

    node: str
    weight: str | None
    rows: int
    multiplications: int
    weights: int
    inputs: int
    outputs: int


def graph_products(graph: GraphShapes, axes: Axes, roles: Mapping[str, str]) -> list[Product]:
    """Return the products of a graph in its order; `roles` are those of its sites, by node.

    A product with a constant that is no weight counts as one with a weight.

    Raises:
        BuildError: the shape of a tensor is not known.
    """
    found = []
    for node in graph.proto.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type in ("MatMul", "Gemm", "Conv"):
            found.append(_product(graph, node, axes, roles.get(node.name, "")))
    return found


def _product(graph: GraphShapes, node: onnx.NodeProto, axes: Axes, role: str) -> Product:
    left, right = node.input[0], node.input[1]
    output = graph.shape(node.output[0], axes)
    if right in graph.weights:
        weight = graph.weights[right]
        outer = weight[0] if node.op_type == "Conv" else output[-1]
        depth = prod(weight) // outer
        return Product(
            node=node.name,
            weight=right,
            rows=prod(output) // outer,
            multiplications=prod(output) * depth,
            weights=prod(weight),
            inputs=prod(graph.shape(left, axes)),
            outputs=prod(output),
        )
    sizes = {
        "left": prod(graph.shape(left, axes)),
        "right": prod(graph.shape(right, axes)),
        "output": prod(output),
    }
    inner = graph.shape(left, axes)[-1]
    sizes[SCORES.get(role, "")] = 0
    return Product(
        node=node.name,
        weight=None,
        rows=output[-2] if len(output) > 1 else 1,
        multiplications=prod(output) * inner,
        weights=0,
        inputs=sizes["left"] + sizes["right"],
        outputs=sizes["output"],
    )
