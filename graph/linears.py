"""Read a linear's weight as [O, I], however ONNX stores it, and turn Gemm into MatMul and Add."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .builder import constant_array
from .edit import node_named
from .sites import Site

LINEAR_OPS = ("MatMul", "Gemm")


def site_node(graph: ir.Graph, site: Site) -> ir.Node:
    """Return the node that is the product of a site."""
    return node_named(graph, site.node)


def site_weight(graph: ir.Graph, site: Site) -> NDArray[np.float32]:
    """Return the weight of a convolution [O, I, kh, kw] or of a linear [O, I]."""
    assert site.weight is not None
    array = constant_array(graph.initializers[site.weight]).astype(np.float32, copy=False)
    return output_first(site_node(graph, site), array)


def output_first(node: ir.Node, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weight of a node as [O, I, ...]; it is copied only where it is transposed."""
    return weight if node.op_type not in LINEAR_OPS or gemm_transposes(node) else weight.T


def gemm_transposes(node: ir.Node) -> bool:
    """Return whether the weight of a Gemm is [O, I]; that of a MatMul never is."""
    return "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def is_plain_gemm(gemm: ir.Node) -> bool:
    """Return whether a Gemm is a linear: x W + b or x W^T + b, without factors."""
    factors = (gemm.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return all(factor == 1.0 for factor in factors) and not gemm.attributes.get_int("transA", 0)


def gemm_to_matmul(
    graph: ir.Graph, gemm: ir.Node, weight: ir.Value, *, output: str, added: str
) -> ir.Node:
    """Replace a plain Gemm by MatMul(x, `weight`) [I, O] and, if it has a bias, an Add behind it.

    The MatMul has the Gemm's name and its output is called `output`, the Add is called `added`;
    the last of them takes over the name of the Gemm's output. Returns the MatMul.
    """
    product = ir.node("MatMul", [gemm.inputs[0], weight], name=str(gemm.name))
    product.metadata_props.update(gemm.metadata_props)
    product.outputs[0].name = output
    nodes = [product]
    if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
        nodes.append(ir.node("Add", [product.outputs[0], gemm.inputs[2]], name=added))
    old = gemm.outputs[0]
    for node in nodes:
        node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    graph.insert_before(gemm, nodes)
    name, old.name = old.name, f"{old.name}:gemm"
    last = nodes[-1].outputs[0]
    last.name = name
    old.replace_all_uses_with(last, replace_graph_outputs=True)
    graph.remove(gemm, safe=True)
    return product
