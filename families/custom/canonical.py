"""Bring a custom ONNX file into the form of later stages: opset, names, linears, constants.

1. Opset 21 at least; functions are inlined, constants and what they compute are initializers, every
   value has a type; float16 is widened. Bodies of If, Loop and Scan keep their nodes.
2. Every product has the name of its site, by `site_names`; no other node or value has a slash in
   its name, which the stages use for what they insert.
3. Every linear is MatMul with `SITE.weight` [in, out] and an Add of `SITE.bias`, if any.
4. What scales or shifts a channel is one node's own constant.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from ...export.passes.linears import canonical_linears, weight_of
from ...export.passes.naming import module_path
from ...graph.edit import drop_unused_initializers
from .constants import WIDENED, fold, widen_float16
from .load import OPSET, load
from .products import attention_role, is_activation_product, is_listed, is_product, not_a_linear
from .rewrites import rewrite_products

__all__ = ["OPSET", "read_custom_graph"]

UNNAMED = "unnamed"
# Names that an exporter gives to constants that it computed; they do not name a module.
NAMELESS = re.compile(r"(val|const|constant|onnx::\w+|initializer)[_:]?\d*", re.IGNORECASE)
# Ends of names that later stages derive from a site's.
RESERVED = (
    *("weight", "bias", "weight_q", "weight_scale", "weight_zero_point", "weight_f", "weight_log"),
    *("activation_scale", "zero_point", "input_scale", "input_shift", "channel_factor"),
    *("bias_shifted", "clip_low", "clip_high", "pads"),
)
PER_CHANNEL_OPS = ("Add", "Mul")
NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)


def read_custom_graph(
    path: Path, taken: Collection[str] = (), graph_name: str | None = None
) -> ir.Model:
    """Read a file and bring it into the canonical form; weights stay mapped in their file.

    `taken` are site names of other graphs: a site of such a name gets `graph_name` before it, the
    file's stem by default.
    `model.meta[WIDENED]` says whether the file computes in float16.

    Raises:
        ExportError: not an ONNX model, weights missing, already quantized, or an opset that cannot
            be converted.
    """
    model = load(path)
    for node in model.graph.all_nodes():
        node.meta[UNNAMED] = not node.name  # passes make up names that say nothing
    NameFixPass()(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.meta[WIDENED] = widen_float16(model)
    fold(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    TopologicalSortPass()(model)
    for node in model.graph.all_nodes():
        if node.meta.get(UNNAMED):
            node.name = None
    infer_shapes(model)
    rewrite_products(model.graph)
    infer_shapes(model)
    name_everything(model.graph, graph_name or path.stem, taken)
    canonical_linears(model.graph, name_of=linear_name)
    separate_constants(model.graph)
    drop_unused_initializers(model.graph)
    return model


def infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of all values that have one.

    ONNX infers none for GroupNormalization with a dynamic batch, and none behind it.
    """
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "GroupNormalization" else None
        if source is not None and source.shape is not None and node.outputs[0].shape is None:
            node.outputs[0].shape, node.outputs[0].type = source.shape, source.type
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def name_everything(graph: ir.Graph, graph_name: str, taken: Collection[str]) -> None:
    """Name products after their sites; other names stay, without slashes.

    Names in bodies differ from those outside and in other bodies.
    """
    used: set[str] = set()
    for node in [node for node in graph if is_listed(node)]:
        base = site_name(node)
        if base in taken:
            base = f"{graph_name}.{base}"
        node.name = unique(base, {*used, *taken, *blocked_names(graph, node)})
        used.add(node.name)
    others = [node for node in graph if not is_listed(node)]
    inside = [node for node in graph.all_nodes() if node.graph is not graph]
    for node in (*others, *inside):
        blocked = {*used, *taken} if is_listed(node) else used
        node.name = unique(plain(node.name or node.op_type.lower()), blocked)
        used.add(node.name)
    outside = {value.name for value in (*graph.inputs, *graph.outputs)}
    inner = [v for n in graph for v in n.outputs if v.name and v.name not in outside]
    names = {str(v.name) for v in inner} | {str(name) for name in outside}
    for value in inner:
        if "/" in str(value.name):
            value.name = unique(plain(str(value.name)), names)
            names.add(value.name)
    names |= {str(name) for name in graph.initializers}
    for value in body_values(graph):
        value.name = unique(plain(str(value.name)), names)
        names.add(value.name)


def body_values(graph: ir.Graph) -> list[ir.Value]:
    """Return what bodies take and compute, at any depth, without omitted optional outputs."""
    values: dict[ir.Value, None] = {}
    for body in graph.subgraphs():
        values |= dict.fromkeys((*body.inputs, *body.initializers.values()))
        values |= dict.fromkeys(v for node in body for v in node.outputs if v.name)
    return list(values)


def site_name(node: ir.Node) -> str:
    """Return a product's name: its weight's owner, else the module, else the node's name."""
    weight = node.inputs[1] if is_product(node) else None
    if weight is not None and not weight.is_initializer():
        weight = weight_of(node) if node.op_type in ("MatMul", "Gemm") else None
    weight_name = "" if weight is None else str(weight.name)
    base = weight_name.removesuffix(".weight")
    if base == weight_name:
        base = module_path(node)
    if not base and node.name:
        base = node.name.removesuffix(f"/{node.op_type}")
    if not base and not NAMELESS.fullmatch(weight_name):
        base = weight_name
    base = plain(base or node.op_type.lower())
    if not is_product(node):
        return base
    return f"{base}.{attention_role(node)}" if is_activation_product(node) else base


def blocked_names(graph: ir.Graph, node: ir.Node) -> set[str]:
    """Return names of sites that other nodes' constants occupy."""
    near = [node, *node.outputs[0].consumers()]
    own = {value.name for n in near for value in n.inputs if value is not None}
    linear = is_product(node) and node.op_type in ("MatMul", "Gemm")
    weight = weight_of(node) if linear else None
    own |= {weight.name} if weight is not None else set()
    return {
        name.rpartition(".")[0]
        for name in graph.initializers
        if name not in own and name.rpartition(".")[2] in RESERVED
    }


def plain(name: str) -> str:
    """Return a name of letters, digits, `.`, `_`, `-` and `:`, with dots for slashes."""
    return re.sub(r"[^\w.:-]", "_", name.strip("/").replace("/", "."))


def unique(base: str, used: Collection[str]) -> str:
    name, number = base, 1
    while name in used:
        number += 1
        name = f"{base}_{number}"
    return name


def linear_name(node: ir.Node) -> str | None:
    """Return the name of a node that is a linear and nothing more, None for other products."""
    return None if node.domain or not_a_linear(node) else node.name


def separate_constants(graph: ir.Graph) -> None:
    """Copy constants that several nodes scale or shift with, one for each.

    The file of weights holds equal contents once.
    """
    for name, value in list(graph.initializers.items()):
        for node, index in list(value.uses())[1:]:
            if node.op_type in (*PER_CHANNEL_OPS, *NORMS) and node.graph is graph:
                copy = ir.Value(
                    name=unique(f"{name}.{node.name}", graph.initializers),
                    const_value=value.const_value,
                    shape=value.shape,
                    type=value.type,
                )
                graph.register_initializer(copy)
                node.replace_input_with(index, copy)
