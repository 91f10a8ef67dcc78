"""Write attentions whose keys and values are stored in fewer bits: in steps, and for all positions.

    k -> Mul 1/r -> Q(a) -> Concat(past_key, .) = present_key -> Transpose -> DQ(a) -> MatMul
    q -> Mul r --------------------------------------------------------------------^
    v -> Mul 1/r -> Q(a) -> Concat(past_value, .) = present_value -> DQ(a) -> MatMul -> Mul r

r is a factor of each head or channel, [1, H, 1, d], and a their scalar median: both products
commute with r, so the factors meet the new tokens alone and the stored ones only a Cast and a
scalar. A graph of all positions has no past: its keys and values get the same Q and DQ. Of FP8,
which ONNX does not concatenate, it is Concat(DQ(past), DQ(Q(.))) -> Q = present, which gives the
stored numbers again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import RecipeError
from ...graph.builder import Inserter, constant
from ...graph.edit import insert_behind, producer
from ...graph.linears import site_node
from ...graph.sites import Site
from ...numerics.scheme import CacheType
from ...numerics.weight import FP8

SCORES, MIXED = ".bmm_qk", ".bmm_pv"  # ends of the names of an attention's two products
TYPES: dict[CacheType, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "int8": ir.DataType.INT8,
}


@dataclass(frozen=True, slots=True)
class CacheScales:
    """Hold the scale of each channel of each head, [H, d]; None for a type without scales."""

    key: NDArray[np.float32] | None = None
    value: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Hold the two products of an attention, and its keys and values [N, H, T, d]."""

    name: str
    scores: ir.Node
    mixed: ir.Node
    transposed: ir.Node
    key: ir.Value
    value: ir.Value

    @property
    def heads(self) -> tuple[int, int]:
        """Return the number of heads and their channels."""
        assert self.key.shape is not None
        return int(self.key.shape[1]), int(self.key.shape[3])  # type: ignore[arg-type]


def cache_names(sites: Sequence[Site]) -> tuple[str, ...]:
    """Return the names of a graph's attentions, in order."""
    return tuple(s.name.removesuffix(SCORES) for s in sites if s.name.endswith(SCORES))


def cached_attentions(graph: ir.Graph, sites: Sequence[Site]) -> list[CachedAttention]:
    """Return the attentions of a graph before anything was inserted between their nodes.

    Raises:
        RecipeError: an attention of another form, as that of a cache of another type.
    """
    by_name = {site.name: site for site in sites}
    found = []
    for name in cache_names(sites):
        scores, mixed = (site_node(graph, by_name[f"{name}{end}"]) for end in (SCORES, MIXED))
        transposed, value = producer(scores.inputs[1], "Transpose"), mixed.inputs[1]
        key = None if transposed is None else transposed.inputs[0]
        if transposed is None or key is None or value is None or key.shape is None:
            raise RecipeError(
                f"{name} is no attention over keys and values as they are stored",
                do="leave kv_cache (--kv-cache) out",
            )
        found.append(CachedAttention(name, scores, mixed, transposed, key, value))
    return found


def store_caches(
    graph: ir.Graph, attention: CachedAttention, kind: CacheType, scales: CacheScales
) -> None:
    """Store the keys and values of one attention as `kind`."""
    path = (attention.transposed, attention.scores)
    store(graph, attention.key, path, f"{attention.name}.key", kind, scales.key)
    store(graph, attention.value, (attention.mixed,), f"{attention.name}.value", kind, scales.value)
    if scales.key is not None:
        queries, factor = attention.scores.inputs[0], relative(scales.key)
        assert queries is not None
        if (factor != 1).any():
            chain = Inserter(graph, attention.scores, f"{attention.name}.query")
            scaled = chain("Mul", queries, chain.constant("key_factor", factor))
            attention.scores.replace_input_with(0, scaled)
    if scales.value is not None and (relative(scales.value) != 1).any():
        name = f"{attention.name}.mixed"
        factors = constant(graph, f"{name}.value_factor", relative(scales.value))
        insert_behind(graph, attention.mixed.outputs[0], "Mul", factors, f"{name}/Mul")


def store(
    graph: ir.Graph,
    whole: ir.Value,
    path: Sequence[ir.Node],
    name: str,
    kind: CacheType,
    scale: NDArray[np.float32] | None,
) -> None:
    """Store `whole`, the keys or values of all tokens; `path` leads from them to their product."""
    concat = producer(whole, "Concat")
    past = None if concat is None else concat.inputs[0]
    if past is None or not past.is_graph_input():
        concat = past = None  # all positions at once, or the first step of fixed shapes
    new = whole if concat is None else concat.inputs[1]
    assert new is not None
    coder = Coder(graph, name, kind, scale)
    stored = coder.encode(new, concat or path[0])
    if concat is None or past is None:
        replace_output(graph, whole, stored)
        read_decoded(coder, stored, whole, path)
        return
    past.dtype = TYPES[kind]
    if kind == "fp8":
        concat.replace_input_with(0, coder.decode(past, concat))
        concat.replace_input_with(1, coder.decode(stored, concat))
        replace_output(graph, whole, coder.requantize(whole, path[0]))
    else:
        concat.replace_input_with(1, stored)
        whole.dtype = TYPES[kind]
        read_decoded(coder, whole, whole, path)


def read_decoded(coder: Coder, stored: ir.Value, whole: ir.Value, path: Sequence[ir.Node]) -> None:
    """Let the product at the end of `path` read what is stored in place of `whole`.

    It is turned as it is stored: of INT8 a quarter is moved, and ONNX Runtime takes a
    DequantizeLinear in front of a Transpose apart wrongly.
    """
    *turns, product = path
    if coder.kind == "fp8":  # which few operators turn
        stored = coder.decode(stored, path[0])
    for node in turns:
        node.replace_input_with(0, stored)
        node.outputs[0].type = stored.type
        stored = node.outputs[0]
    if coder.kind != "fp8":
        stored = coder.decode(stored, product)
    product.replace_input_with(1, stored)


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let the graph give `new` under the name of its output `old`, where that is one."""
    for index, output in enumerate(graph.outputs):
        if output is old:
            name = str(old.name)
            new.shape, old.name, new.name = old.shape, f"{name}:float", name
            graph.outputs[index] = new


class Coder:
    """Add nodes that put keys or values into their stored type, and back."""

    def __init__(
        self, graph: ir.Graph, name: str, kind: CacheType, scale: NDArray[np.float32] | None
    ) -> None:
        self.graph, self.name, self.kind = graph, name, kind
        self.inverse: ir.Value | None = None
        self.grid: tuple[ir.Value, ...] = ()
        self.count = 0
        if scale is not None:
            factor = relative(scale)
            if (factor != 1).any():
                inverse = (1 / factor.astype(np.float64)).astype(np.float32)
                self.inverse = constant(graph, f"{name}.inverse_factor", inverse)
            zero = np.zeros((), FP8 if kind == "fp8" else np.int8)
            self.grid = (
                constant(graph, f"{name}.scale", engine_scale(scale)),
                constant(graph, f"{name}.zero_point", zero),
            )

    def encode(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return new keys or values as they are stored."""
        chain = self._chain(before)
        if self.inverse is not None:
            value = chain("Mul", value, self.inverse)
        return self._stored(chain, value)

    def requantize(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return keys or values that were stored before as they were stored."""
        return self._stored(self._chain(before), value)

    def decode(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return what is stored as floats, each divided by its factor."""
        chain = self._chain(before)
        made = (
            chain("DequantizeLinear", value, *self.grid)
            if self.grid
            else chain("Cast", value, to=int(ir.DataType.FLOAT))
        )
        made.dtype, made.shape = ir.DataType.FLOAT, value.shape
        return made

    def _stored(self, chain: Inserter, value: ir.Value) -> ir.Value:
        shape, kind = value.shape, TYPES[self.kind]
        made = (
            chain("QuantizeLinear", value, *self.grid)
            if self.grid
            else chain("Cast", value, to=int(kind))
        )
        made.dtype, made.shape = kind, shape
        return made

    def _chain(self, before: ir.Node) -> Inserter:
        """Return an inserter whose names no other of this cache has."""
        self.count += 1
        return Inserter(self.graph, before, self.name + (f".{self.count}" * (self.count > 1)))


def engine_scale(scale: NDArray[np.float32]) -> np.float32:
    """Return the scalar scale of Q and DQ: the median over heads and channels."""
    median: np.float32 = np.float32(np.median(scale))
    return median


def relative(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the factors r of scales [H, d], in units of `engine_scale`, [1, H, 1, d].

    [1, H, 1, 1] where the channels of each head have one.
    """
    factor = (scale.astype(np.float64) / engine_scale(scale)).astype(np.float32)
    if (factor == factor[:, :1]).all():
        factor = factor[:, :1]
    return factor[None, :, None, :]
