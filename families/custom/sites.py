"""Find the sites of a custom graph from its operators alone."""

from __future__ import annotations

import onnx_ir as ir

from ...export.passes.linears import bias_add
from ...graph.sites import Site
from .folds import find_fold
from .products import (
    PRODUCT,
    UNKNOWN_RANK,
    VALUES,
    attention_role,
    before,
    behind,
    bodies,
    in_body,
    is_activation_product,
    is_listed,
    is_product,
    obstacle,
)

FIRST_OR_LAST = "first or last product of a convolutional graph"


def find_custom_sites(graph: ir.Graph, graph_name: str) -> tuple[Site, ...]:
    """Return sites in graph order, of a graph in the form of `read_custom_graph`.

    Products that cannot be quantized are listed with the reason, and without a weight: other forms
    (Einsum, recurrent layers), other domains, and products in bodies. In a graph with more
    convolutions than linears, the first and last products stay in high precision, as those of image
    tokenizers do.
    """
    products = [node for node in graph if is_listed(node)]
    able = [node for node in products if obstacle(node) is None]
    convolutions = sum(node.op_type == "Conv" for node in able)
    ends: set[ir.Node] = set()
    if 2 * convolutions > len(able) > 2:
        ends = {n for n in able if not any(before(n)) or not any(behind(n))}
    sites = [site_of(node, graph_name, able, node in ends) for node in products]
    for owner, body in bodies(graph):
        reason = in_body(owner.op_type)
        sites += [bare_site(node, graph_name, reason) for node in body if is_listed(node)]
    return tuple(sites)


def unknown_ranks(graph: ir.Graph) -> list[ir.Value]:
    """Return inputs of linears that are not quantized only because their rank is unknown."""
    nodes = [node for node in graph if is_product(node) and obstacle(node) == UNKNOWN_RANK]
    return [value for value in dict.fromkeys(node.inputs[0] for node in nodes) if value is not None]


def role_of(node: ir.Node) -> str:
    """Return qkv or proj for linears beside an attention, else what the operator is."""
    if any(is_activation_product(n) and attention_role(n) == VALUES for n in before(node)):
        return "proj"
    if any(is_activation_product(n) and attention_role(n) != PRODUCT for n in behind(node)):
        return "qkv"
    return "conv" if node.op_type in ("Conv", "ConvTranspose") else "linear"


def has_all_positions(x: ir.Value) -> bool:
    """Return whether every run has the same number of tokens, so that each can have a scale."""
    shape = x.shape
    return shape is not None and len(shape) == 3 and isinstance(shape[1], int) and shape[1] > 1


def bare_site(node: ir.Node, graph_name: str, reason: str) -> Site:
    """Return the site of a product that stays as it is: without a weight, with the reason."""
    role = "product"
    if node.op_type == "MatMul" and is_activation_product(node):
        role = attention_role(node)
    elif node.op_type in ("Conv", "ConvTranspose"):
        role = "conv"
    return Site(
        name=str(node.name),
        graph=graph_name,
        role=role,
        op=node.op_type,
        node=str(node.name),
        weight=None,
        bias=None,
        input=str(node.inputs[0].name if node.inputs[0] is not None else ""),
        output=str(node.outputs[0].name),
        weight_shape=(),
        excluded=reason,
    )


def site_of(node: ir.Node, graph_name: str, able: list[ir.Node], is_end: bool) -> Site:
    reason = obstacle(node)
    if reason is not None:
        return bare_site(node, graph_name, reason)
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None and weight.const_value is not None
    convolution = node.op_type == "Conv"
    rank = 4 if convolution else len(x.shape or ())
    if x.shape is None:
        x.shape = ir.Shape([None] * rank)
    if x.dtype is None:
        x.dtype = ir.DataType.FLOAT
    axis = 1 if convolution else rank - 1
    add = None if convolution else bias_add(node)
    fold, producer_fold = find_fold(x, axis, able)
    if convolution:
        given = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None if given is None else given.name
    else:
        bias = None if add is None else f"{node.name}.bias"
    return Site(
        name=str(node.name),
        graph=graph_name,
        role=role_of(node),
        op=node.op_type,
        node=str(node.name),
        weight=weight.name,
        bias=bias,
        input=str(x.name),
        output=str((add or node).outputs[0].name),
        weight_shape=tuple(weight.const_value.shape.numpy()),
        channel_axis=axis,
        shares_input_with=tuple(
            str(user.name) for user in x.consumers() if user is not node and user in able
        ),
        fold=fold,
        producer_fold=producer_fold,
        token_axis=1 if rank == 3 else None,
        of_all_positions=has_all_positions(x),
        excluded=FIRST_OR_LAST if is_end else None,
    )
