"""Take the rounding of sites' inputs out of a Q/DQ graph, down to a plain product and its bias.

    x -> [Pad] -> [Mul m] -> [Sub c] -> Q -> [Clip] -> DQ -> product(W_q) -> [Mul f] -> [Add a]

becomes ``product(x, m W f) + (a - c W f)``, which computes the same but for the rounding: W stays
as it was rounded, in float32. Factors of the rows, a scale per token, are in front of the product
and taken back behind it; they go on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import BuildError
from ...graph.builder import constant, constant_array
from ...graph.edit import insert_behind, producer
from ...graph.linears import site_node
from ...graph.passes import remove_unused
from ...graph.sites import Site
from ...quantize.chains import Chain, Ends, find_chain, take_name
from ..onnxruntime.matmul_integer import match_input

Floats = NDArray[np.float64]
# What sums in float64 leave of two parts that cancel; a bias of a model is not as small.
CANCELLED = 1e-6


@dataclass(slots=True)
class Affine:
    """Hold what is done to an input [.., C] in front of its rounding: x m - c, then - `rest`.

    `rest` comes behind a factor of the rows.
    """

    factor: Floats
    shift: Floats
    rest: Floats
    by_row: bool = False
    pads: tuple[int, ...] | None = None

    def apply(self, step: ir.Node) -> None:
        """Add one more step, which reads what the earlier ones give."""
        if step.op_type == "Pad":
            pads = constant_array(step.inputs[1])
            half = len(pads) // 2
            self.pads = tuple(int(v) for v in (*pads[2:half], *pads[half + 2 :]))
            return
        by = operand(step, 1)
        if by is None:
            self.by_row = True
        elif step.op_type == "Mul" and not self.by_row:
            self.factor, self.shift = self.factor * by, self.shift * by
        elif self.by_row:
            self.rest = self.rest + by
        else:
            self.shift = self.shift + by


@dataclass(slots=True)
class Behind:
    """Hold what is done to a product [.., O] behind it, by channel: z f + a.

    `inner` is the part of a that comes in front of a factor of the rows, which it must not meet.
    """

    factor: Floats
    bias: Floats
    inner: Floats | None = None

    def apply(self, step: ir.Node, side: int) -> None:
        """Add one more step, whose operand at `side` is not the product."""
        by = operand(step, side)
        if by is None:
            if step.op_type == "Mul":
                self.inner, self.bias = self.bias, np.zeros_like(self.bias)
        elif step.op_type == "Mul":
            self.factor, self.bias = self.factor * by, self.bias * by
        else:
            self.bias = self.bias + by


def operand(step: ir.Node, side: int) -> Floats | None:
    """Return a constant operand, a scalar or by channel; None for one that differs by row."""
    value = step.inputs[side]
    if value is None or value.const_value is None:
        return None
    held = constant_array(value).astype(np.float64)
    if (
        held.size > 1
        and held.shape[-1] == 1
        and max(held.shape[:-1]) == held.size
        and held.ndim < 4
    ):
        return None  # a table of rows [T, 1]
    return held.ravel() if held.size > 1 else held.reshape(())


def compute_in_float(graph: ir.Graph, sites: Sequence[Site], ends: Mapping[str, Ends]) -> None:
    """Take the rounding of the inputs of sites out of a Q/DQ graph, in place.

    Raises:
        BuildError: the nodes of a site are not those that `quantize` writes.
    """
    for site in sites:
        node = site_node(graph, site)
        if site.weight is None:
            for side in range(2):
                if (rounded := match_input(node, side)) is not None:
                    node.replace_input_with(side, rounded.source)
            continue
        plain_product(graph, site, node, find_chain(graph, site, ends[site.name]))
    remove_unused(graph)


def plain_product(graph: ir.Graph, site: Site, node: ir.Node, chain: Chain) -> None:
    """Let a product read its unrounded input, with all that surrounds it in weight and bias."""
    dequantize = producer(node.inputs[1], "DequantizeLinear")
    quantized = match_input(node)
    if dequantize is None or quantized is None:
        raise other_form(site)
    convolves = node.op_type == "Conv"
    weight = dequantized(dequantize)
    channels, outputs = (weight.shape[1], weight.shape[0]) if convolves else weight.shape
    front = Affine(np.ones(channels), np.zeros(channels), np.zeros(channels))
    steps = list(steps_in_front(quantized.source, chain))
    for step in reversed(steps):
        front.apply(step)
    value = steps[-1].inputs[0] if steps else quantized.source
    behind = Behind(np.ones(outputs), np.zeros(outputs))
    for step, side in steps_behind(node, chain, site):
        behind.apply(step, side)
    across = (1, -1, 1, 1) if convolves else (-1, 1)
    along = (-1, 1, 1, 1) if convolves else (1, -1)
    scaled = weight * behind.factor.reshape(along)
    total = behind.bias - weighted(front.shift, scaled, convolves)
    total = total + left_inside(front, behind, scaled, convolves, site)
    final = (scaled * front.factor.reshape(across)).astype(np.float32)
    node.replace_input_with(0, value)
    node.replace_input_with(1, constant(graph, f"{site.name}.weight_float", final))
    if convolves:
        add_to_convolution(graph, site, node, total, front.pads)
        return
    add_behind(graph, site, node, chain, total, spread(behind.bias, front.shift, scaled))


def dequantized(node: ir.Node) -> Floats:
    """Return what a DequantizeLinear of constants gives, in float64."""
    q, scale = (constant_array(value).astype(np.float64) for value in node.inputs[:2])
    if scale.ndim:
        axis = node.attributes.get_int("axis", 1)
        scale = scale.reshape([-1 if k == axis else 1 for k in range(q.ndim)])
    return np.asarray(q * scale)


def steps_in_front(value: ir.Value, chain: Chain) -> Iterator[ir.Node]:
    """Yield the nodes between a site's input and its rounding, the last one first."""
    inside = set(chain.nodes)
    node = value.producer()
    while node is not None and node in inside and node.op_type in ("Mul", "Sub", "Pad"):
        yield node
        before = node.inputs[0]
        node = None if before is None else before.producer()


def steps_behind(node: ir.Node, chain: Chain, site: Site) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes behind a product up to its site's end, and on which side their operand is."""
    value, inside = node.outputs[0], set(chain.nodes)
    while value is not chain.output:
        users = [(user, index) for user, index in value.uses() if user in inside]
        if len(users) != 1 or users[0][0].op_type not in ("Mul", "Add"):
            raise other_form(site)
        step, index = users[0]
        yield step, 1 - index
        value = step.outputs[0]


def left_inside(
    front: Affine, behind: Behind, scaled: Floats, convolves: bool, site: Site
) -> Floats:
    """Return what shifts behind a factor of the rows leave: nothing, or the form is another one."""
    taken = weighted(front.rest, scaled, convolves)
    if behind.inner is None:
        return -taken
    left = behind.inner - taken
    if np.abs(left).max() > CANCELLED * max(1e-30, np.abs(taken).max()) * 10:
        raise other_form(site)
    return np.zeros_like(left)


def weighted(shift: Floats, weight: Floats, convolves: bool) -> Floats:
    """Return what a constant input [C] makes of each output channel, [O]."""
    by_channel = weight.reshape(*weight.shape[:2], -1).sum(axis=2) if convolves else weight.T
    total: Floats = by_channel @ shift
    return total


def spread(bias: Floats, shift: Floats, scaled: Floats) -> float:
    """Return how large the parts are that may cancel in a bias."""
    parts = np.abs(shift) @ np.abs(scaled)
    return float(max(np.abs(bias).max(), parts.max())) if np.any(shift) else 0.0


def add_to_convolution(
    graph: ir.Graph, site: Site, node: ir.Node, total: Floats, pads: tuple[int, ...] | None
) -> None:
    """Add to a convolution's bias, and let it pad by itself again."""
    held = node.inputs[2] if len(node.inputs) > 2 else None
    if held is not None or np.any(total):
        before = 0.0 if held is None else constant_array(held).astype(np.float64)
        bias = constant(graph, f"{site.name}.bias_float", (before + total).astype(np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
    if pads is not None:
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def add_behind(
    graph: ir.Graph, site: Site, node: ir.Node, chain: Chain, total: Floats, parts: float
) -> None:
    """Give a linear its bias, where there is one, and the name of its site's end."""
    made = node.outputs[0]
    name = f"{site.name}/Add_float"
    if np.abs(total).max() > CANCELLED * parts:
        last = (1,) * site.channel_axis + (-1,)
        held = constant(graph, f"{site.name}.bias_float", total.astype(np.float32).reshape(last))
        if made is chain.output:
            insert_behind(graph, made, "Add", held, name)
            return
        added = ir.node("Add", [made, held], name=name)
        added.outputs[0].name = f"{name}:0"
        graph.insert_after(node, added)
        made = added.outputs[0]
    if made is not chain.output:
        take_name(chain.output, made)


def other_form(site: Site) -> BuildError:
    return BuildError(
        f"{site.name} has other nodes than `quantize` writes",
        where=f"{site.graph}.onnx",
        do="run `arvg-trt quantize` again",
    )
