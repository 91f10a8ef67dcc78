"""Name the products of a custom graph after their sites, and all else so that none collides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

from ...export.passes.linears import weight_of
from ...export.passes.naming import module_path
from ...graph.passes import ensure, require
from .products import attention_role, is_activation_product, is_listed, is_product

# Names that an exporter gives to constants that it computed; they do not name a module.
NAMELESS = re.compile(r"(val|const|constant|onnx::\w+|initializer)[_:]?\d*", re.IGNORECASE)
# Ends of names that later stages derive from a site's.
RESERVED = (
    *("weight", "bias", "weight_q", "weight_scale", "weight_zero_point", "weight_f", "weight_log"),
    *("activation_scale", "zero_point", "input_scale", "input_shift", "channel_factor"),
    *("bias_shifted", "clip_low", "clip_high", "pads"),
)


class NameCustomGraphPass(ir.passes.InPlacePass):
    """Name products after their sites; other names stay, without slashes.

    A site whose name is among `taken`, those of other graphs, gets `graph_name` before it. Names
    in bodies differ from those outside and in other bodies.
    """

    def __init__(self, graph_name: str, taken: Collection[str] = ()) -> None:
        super().__init__()
        self.graph_name = graph_name
        self.taken = frozenset(taken)

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a value that a node makes and no name says."""
        require(
            f"a {node.op_type} makes a value without a name"
            for node in model.graph
            if not node.outputs[0].name and node.outputs[0].uses()
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = all_names(model.graph)
        self._name_nodes(model.graph)
        name_values(model.graph)
        return ir.passes.PassResult(model, all_names(model.graph) != before)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError for nodes of one name, a slash, or a site of a taken name."""
        counts = Counter(node.name for node in model.graph.all_nodes())
        ensure(f"{count} nodes are called {name}" for name, count in counts.items() if count > 1)
        ensure(f"{name} has a slash" for name in counts if "/" in str(name))
        listed = [node.name for node in model.graph if is_listed(node)]
        ensure(f"{name} is a site of another graph" for name in listed if name in self.taken)

    def _name_nodes(self, graph: ir.Graph) -> None:
        used: set[str] = set()
        for node in [node for node in graph if is_listed(node)]:
            base = site_name(node)
            if base in self.taken:
                base = f"{self.graph_name}.{base}"
            node.name = unique(base, {*used, *self.taken, *blocked_names(graph, node)})
            used.add(node.name)
        others = [node for node in graph if not is_listed(node)]
        inside = [node for node in graph.all_nodes() if node.graph is not graph]
        for node in (*others, *inside):
            blocked = {*used, *self.taken} if is_listed(node) else used
            node.name = unique(plain(node.name or node.op_type.lower()), blocked)
            used.add(node.name)


def name_values(graph: ir.Graph) -> None:
    """Take slashes out of the names of values, and let those in bodies be of their own."""
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


def all_names(graph: ir.Graph) -> list[str | None]:
    """Return the names of nodes and values, in bodies too, in order."""
    nodes = list(graph.all_nodes())
    made = [value.name for node in nodes for value in node.outputs]
    return [node.name for node in nodes] + made + [value.name for value in body_values(graph)]


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
    if not is_activation_product(node):
        return base
    role = f".{attention_role(node)}"
    return base.removesuffix(role) + role


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
