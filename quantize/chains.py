"""Cut out the nodes that compute one site, and put those of another graph beside or in their place.

A site's chain leads from what its product reads to what it gives, its bias included: in FP32 a
product and a sum, in a Q/DQ graph also the scales, the rounding and what takes them back. The same
tensors of both graphs have the same names, so that a chain of one fits into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..calibrate.observers.reduce import values_by_name
from ..errors import WorkspaceError
from ..graph.builder import constant, constant_array
from ..graph.linears import LINEAR_OPS, site_node
from ..graph.sites import Site

ROUNDS = ("QuantizeLinear", "DequantizeLinear")
Lookup = Callable[[str], ir.Value]


@dataclass(frozen=True, slots=True)
class Ends:
    """Name the tensors between which a site is computed, the same in FP32 and Q/DQ graphs.

    `inputs` are what the product reads beside its weight, and the positions of its rows.
    """

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Hold the nodes of a site in their order, and the value that the last of them gives."""

    site: Site
    nodes: tuple[ir.Node, ...]
    output: ir.Value
    ends: Ends

    @property
    def rounded_inputs(self) -> tuple[ir.Node, ...]:
        """Return the nodes that round what the product reads."""
        return tuple(node for node in self.nodes if node.op_type == "QuantizeLinear")

    @property
    def constants(self) -> tuple[ir.Value, ...]:
        """Return the initializers that the nodes read, each once."""
        found = {
            str(value.name): value
            for node in self.nodes
            for value in node.inputs
            if value is not None and value.is_initializer()
        }
        return tuple(found.values())

    @property
    def nbytes(self) -> int:
        """Return the bytes of the constants."""
        held = (value.const_value for value in self.constants)
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def ends_of(graph: ir.Graph, site: Site) -> Ends:
    """Return the ends of a site in its FP32 graph."""
    node = site_node(graph, site)
    read = [str(v.name) for v in node.inputs if v is not None and not v.is_initializer()]
    read += [site.position_input] if site.position_input else []
    output = values_by_name(graph)[site.output]
    users = [user for user, _ in output.uses()]
    # Where the map names the product alone, the sum with a constant behind it is its bias.
    # Behind a product of two activations lies an attention's mask.
    is_linear = site.weight is not None and node.op_type in LINEAR_OPS
    if output.producer() is node and is_linear and len(users) == 1:
        (user,) = users
        others = [v for v in user.inputs if v is not output and v is not None]
        if user.op_type == "Add" and others and others[0].is_initializer():
            output = user.outputs[0]
    return Ends(tuple(dict.fromkeys(read)), str(output.name))


def find_chain(graph: ir.Graph, site: Site, ends: Ends) -> Chain:
    """Return the nodes between a site's ends.

    Raises:
        WorkspaceError: the graph has other tensors than the FP32 one.
    """
    values = values_by_name(graph)
    if ends.output not in values:
        raise WorkspaceError(
            f"{site.graph}.onnx has no tensor {ends.output} of the site {site.name}",
            do="run `arvg-trt quantize` again",
        )
    stops = {*ends.inputs, *(str(value.name) for value in graph.inputs)}
    found: set[ir.Node] = set()
    wanted = [values[ends.output]]
    while wanted:
        node = wanted.pop().producer()
        if node is None or node in found:
            continue
        found.add(node)
        wanted += [v for v in node.inputs if v is not None and v.name not in stops]
    return Chain(site, tuple(n for n in graph if n in found), values[ends.output], ends)


def copy_chain(
    chain: Chain, prefix: str, outer: Lookup, *, hold: ir.Graph | None, rounds_input: bool = True
) -> tuple[list[ir.Node], ir.Value]:
    """Return copies of the nodes, and the value that they give.

    Tensors at the ends are taken by name from `outer`. Constants are copied into `hold`, or with
    None are those of the chain, whose graph it stays in. With `rounds_input` False the nodes that
    round what the product reads are left out.
    """
    known: dict[ir.Value, ir.Value] = {}

    def taken(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in known:
            known[value] = _constant(value, hold) if value.is_initializer() else outer(_name(value))
        return known[value]

    def _constant(value: ir.Value, graph: ir.Graph | None) -> ir.Value:
        if graph is None:
            return value
        name = f"{prefix}{value.name}"
        if name in graph.initializers:
            return graph.initializers[name]
        return constant(graph, name, np.array(constant_array(value)))

    copies: list[ir.Node] = []
    skipped = {*_between_rounding(chain)} if not rounds_input else set()
    for node in chain.nodes:
        if node in skipped:
            source = taken(node.inputs[0])
            assert source is not None
            known[node.outputs[0]] = source
            continue
        inputs = [taken(value) for value in node.inputs]
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{prefix}{node.name}",
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type, new.shape = f"{prefix}{old.name}", old.type, old.shape
            known[old] = new
        copies.append(made)
    return copies, known[chain.output]


def _name(value: ir.Value) -> str:
    return str(value.name)


def _between_rounding(chain: Chain) -> Iterator[ir.Node]:
    """Yield the nodes from each rounding of an input to what reads it as a float again."""
    for start in chain.rounded_inputs:
        node = start
        while True:
            yield node
            if node.op_type == "DequantizeLinear":
                break
            node = next(iter(node.outputs[0].uses())).node


def switch(graph: ir.Graph, own: Chain, other: Chain, flag: ir.Value, prefix: str) -> None:
    """Let a flag choose between a graph's own chain of a site and another graph's.

    `flag` is a bool scalar: with True it is the `other`. Only one of them is computed. What the
    site gives keeps its name. `graph` needs to be sorted afterwards.
    """
    lookup = current_values(graph)
    branches = []
    for chain, hold, name in ((other, graph, f"{prefix}on:"), (own, None, f"{prefix}off:")):
        nodes, result = copy_chain(chain, name, lookup, hold=hold)
        branches.append(ir.Graph([], [result], nodes=nodes, name=f"{name}{chain.site.name}"))
    node = ir.Node(
        "",
        "If",
        [flag],
        [
            ir.AttrGraph("then_branch", branches[0]),
            ir.AttrGraph("else_branch", branches[1]),
        ],
        name=f"{prefix}{own.site.name}/If",
    )
    replace_value(graph, own.output, node)


def replace(graph: ir.Graph, own: Chain, other: Chain, prefix: str) -> None:
    """Put another graph's chain of a site in the place of a graph's own; sort it afterwards."""
    nodes, result = copy_chain(other, prefix, current_values(graph), hold=graph)
    producer = own.output.producer()
    assert producer is not None
    graph.insert_after(producer, nodes)
    take_name(own.output, result)


def replace_value(graph: ir.Graph, old: ir.Value, node: ir.Node) -> None:
    """Put a node behind the producer of a value, whose name and readers its output takes."""
    producer = old.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    take_name(old, node.outputs[0])


def take_name(old: ir.Value, new: ir.Value) -> None:
    name = str(old.name)
    new.type, new.shape = old.type, old.shape
    old.name = f"{name}:before"
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def current_values(graph: ir.Graph) -> Lookup:
    """Return what finds a value of a graph by its name."""
    values: Mapping[str, ir.Value] = values_by_name(graph)

    def find(name: str) -> ir.Value:
        if name not in values:
            raise WorkspaceError(
                f"the other graph has no tensor {name}", do="run `arvg-trt quantize` again"
            )
        return values[name]

    return find
