"""Add reduction nodes to an instrumented copy of a graph: the base of all observers.

Only small vectors leave the session: [N, C] per tensor and statistic, whatever the size of images
or the number of samples and tokens. Each reduction runs over one axis of at most a few thousand
terms, since ONNX Runtime's long float32 sums are wrong by 1e-4 and more; the rest is added in
float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import CalibrationError
from ...graph.builder import add_node, constant

Floats = NDArray[np.float32]

FINITE = "only finite"  # key in `graph.meta` of the copies with only finite values
LEAST_PARTS, MOST_PARTS = 4, 24  # into which a sample's tokens are split before they are reduced
# Ends of the names of a `Reducer`'s outputs, which have a row per sample, in order.
ROW_KINDS = frozenset({"min", "max", "square", "signal", "noise", "e2", "e4"})


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return every value of a graph; after `only_finite` copies without NaN and infinity."""
    values = {str(v.name): v for v in graph.inputs}
    for node in graph:
        values.update((str(v.name), v) for v in node.outputs)
    return FiniteValues(graph, values) if FINITE in graph.meta else values


def value_named(graph: ir.Graph, name: str) -> ir.Value:
    """Return the first value of this name; inputs come first, so that theirs are found at once."""
    made = (value for node in graph for value in node.outputs)
    return next(value for value in chain(graph.inputs, made) if value.name == name)


def only_finite(graph: ir.Graph) -> None:
    """Let observers of a graph see 0 for NaN and infinity; what the graph computes stays."""
    graph.meta[FINITE] = {}


class FiniteValues(dict[str, ir.Value]):
    """Map names to values of a graph, each with 0 for NaN and infinity, made on first use."""

    def __init__(self, graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
        super().__init__(values)
        self.graph = graph

    def __getitem__(self, name: str) -> ir.Value:
        return finite(self.graph, super().__getitem__(name))


def finite(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return `value`, or after `only_finite` its finite copy; what is no float has none."""
    made: dict[str, ir.Value] | None = graph.meta.get(FINITE)
    if made is None or value.dtype not in (None, ir.DataType.FLOAT):
        return value
    name = str(value.name)
    if name not in made:
        # x - x is 0 for what is finite, NaN for the rest.
        zero = constant(graph, f"{name}:finite/zero", np.float32(0))
        rest = add_node(graph, "Sub", [value, value], f"{name}:finite/rest")
        fine = add_node(graph, "Equal", [rest, zero], f"{name}:finite/fine")
        copy = add_node(graph, "Where", [fine, value, zero], f"{name}:finite")
        copy.shape, copy.type = value.shape, value.type
        made[name] = copy
    return made[name]


class Reducer:
    """Reduce tensors like `value` to [rows, C], over one axis at a time from the last.

    A sample has one row. Tokens [N, T, C] reduced by channel have several rows of T / k tokens
    each, or one row for the batch where nothing divides T: ONNX Runtime reduces the middle of [1,
    256, 4096] in 1.2 ms, of [16, 16, 4096] in 0.1 and the first axis of [256, 4096] in 0.3, on two
    threads, since a leading 1 keeps it from its fast loops.
    """

    def __init__(self, graph: ir.Graph, value: ir.Value, channel_axis: int) -> None:
        if value.shape is None:
            raise CalibrationError(
                f"the rank of {value.name} is unknown", do="run `arvg-trt export` again"
            )
        self.graph = graph
        self.rank = len(value.shape)
        self.channel_axis = channel_axis
        self.axes = [k for k in reversed(range(1, self.rank)) if k != channel_axis]
        tokens = self.rank == 3 and self.axes == [1]
        self.rows = token_rows(value.shape) if tokens else None
        self._split: dict[ir.Value, ir.Value] = {}

    def by_channel(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values [C] in a shape that broadcasts over the tensor."""
        return values.reshape([-1 if k == self.channel_axis else 1 for k in range(self.rank)])

    def add(self, output: str, value: ir.Value, first: str, later: str | None = None) -> None:
        """Make `output`: reduce by `first` over the last axis, by `later` or `first` over others.

        Its name ends in one of `ROW_KINDS`.
        """
        assert output.rpartition(":")[2] in ROW_KINDS
        if first == "ReduceSumSquare" and len(self.axes) < 2:
            # Takes half the time of ReduceSumSquare, which has no fast loop.
            value = add_node(self.graph, "Mul", [value, value], f"{output}/squares")
            first = "ReduceSum"
        if not self.axes:
            value = add_node(self.graph, "Identity", [value], output)
        elif self.rows is not None:
            value = self.split(value, self.rows)
            flat = len(self.rows) == 2
            value = self.reduce(first, value, 0 if flat else 1, output, keepdims=int(flat))
        else:
            for k, axis in enumerate(self.axes):
                label = output if k == len(self.axes) - 1 else f"{output}:{axis}"
                value = self.reduce(first if k == 0 else later or first, value, axis, label)
        left = max(1, self.rank - len(self.axes))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None] * left)
        self.graph.outputs.append(value)

    def split(self, value: ir.Value, rows: tuple[int, ...]) -> ir.Value:
        """Return a tensor [N, T, C] split into rows of a few tokens each."""
        if value not in self._split:
            shape = constant(self.graph, f"{value.name}/parts", np.array(rows, np.int64))
            self._split[value] = add_node(
                self.graph, "Reshape", [value, shape], f"{value.name}/split"
            )
        return self._split[value]

    def reduce(
        self, op: str, value: ir.Value, axis: int, output: str, keepdims: int = 0
    ) -> ir.Value:
        held = constant(self.graph, f"{output}/axis", np.array([axis], np.int64))
        return add_node(self.graph, op, [value, held], output, keepdims=keepdims)


def token_rows(shape: ir.Shape) -> tuple[int, ...] | None:
    """Return the shape [-1, T / k, C] for k parts, the most up to `MOST_PARTS` that divide T.

    With fewer than `LEAST_PARTS`, or T unknown, as [-1, C]; None where C is unknown.
    """
    tokens, channels = shape[1], shape[2]
    if not isinstance(channels, int):
        return None
    if not isinstance(tokens, int) or tokens == 0:
        return -1, channels
    parts = max(k for k in range(1, MOST_PARTS + 1) if tokens % k == 0)
    return (-1, channels) if parts < LEAST_PARTS else (-1, tokens // parts, channels)
