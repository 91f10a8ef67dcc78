"""Sum x x^T (the Hessian) and x over the rows x that a product is fed, in a stream.

A row is what one output element is computed from: a token's channels, or a convolution's patch
[C * kernel] in the order of the weight. Rows are made inside the session, a strip of a few thousand
at a time; float32 products run over a strip, float64 sums over strips and batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import OutOfMemory
from ...graph.builder import add_node, constant
from ...numerics.qparams import QParams
from .reduce import values_by_name
from .run import Outputs
from .smoothed import SmoothedInput, add_smoothed, round_smoothed

Floats = NDArray[np.float64]
STRIP = 4096  # rows that one float32 product sums over
# Bytes per element of K x K: of the running sum with the session's output, and of the
# factorization of one site, which adds its result and a copy.
HELD_BYTES, FACTOR_BYTES = 16, 16
KINDS = ("square", "rounded", "plain")
END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Kernel:
    """Describe a convolution without groups, by spatial axis; `pads` has begins, then ends."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HessianObserver:
    """Say which rows are summed: of an input, rounded by `qparams` or not, in patches.

    `columns` is K; `rows` about how many a batch has; `squares` and `means` say what is asked for.
    """

    graph: str
    smoothed_input: SmoothedInput
    columns: int
    rows: int
    qparams: QParams | None = None
    kernel: Kernel | None = None
    squares: bool = True
    means: bool = True

    @property
    def strips(self) -> int:
        return max(1, math.ceil(self.rows / STRIP))

    @property
    def bytes(self) -> int:
        return HELD_BYTES * self.columns**2 if self.squares else 0


@dataclass(frozen=True, slots=True)
class HessianSums:
    """Hold sums over `count` rows: `square` [K, K] and `rounded` [K] of rounded rows.

    `plain` [K] is the sum of rows before rounding. None is what was not asked for.
    """

    count: int
    square: Floats | None
    rounded: Floats | None
    plain: Floats | None


def split_runs(
    observers: Mapping[str, HessianObserver], max_memory: int
) -> list[dict[str, HessianObserver]]:
    """Return observers in order, as many in a calibration run as `max_memory` bytes hold.

    Raises:
        OutOfMemory: one that does not fit alone.
    """
    passes: list[dict[str, HessianObserver]] = []
    used = 0
    for key, observer in observers.items():
        alone = observer.bytes + FACTOR_BYTES * observer.columns**2 * observer.squares
        if alone > max_memory:
            raise OutOfMemory(
                f"the Hessian of {key} ({observer.columns} columns) takes {alone / 1e9:.1f} GB",
                do=f"--max-memory {math.ceil(alone / 2**30)}GiB, or round the site to nearest",
            )
        if not passes or used + alone > max_memory:
            passes.append({})
            used = 0
        passes[-1][key] = observer
        used += observer.bytes
    return passes


class HessianAccumulator:
    """Add up the outputs of `observe_hessian` over batches."""

    def __init__(self, observers: Mapping[str, HessianObserver]) -> None:
        self._observers = observers
        self._sums: dict[str, Floats] = {}
        self._counts = dict.fromkeys(observers, 0)

    def add(self, graph: str, outputs: Outputs) -> None:
        """Add a batch of a graph, in place.

        The largest of these arrays are a good part of the memory that is allowed.
        """
        for key, observer in self._observers.items():
            if observer.graph != graph:
                continue
            for strip in range(observer.strips):
                self._counts[key] += int(outputs[f"{key}:shape:{strip}"][0])
            for kind in KINDS:
                for name in (f"{key}:{kind}:{strip}" for strip in range(observer.strips)):
                    if name in outputs:
                        found = outputs[name]
                        total = self._sums.setdefault(f"{key}:{kind}", np.zeros(found.shape))
                        np.add(total, found, out=total)

    def moments(self) -> dict[str, HessianSums]:
        """Return the sums of all batches, by observer."""
        return {
            key: HessianSums(
                self._counts[key], *(self._sums.get(f"{key}:{kind}") for kind in KINDS)
            )
            for key in self._observers
        }


def observe_hessian(graph: ir.Graph, observers: Mapping[str, HessianObserver]) -> None:
    """Add outputs `KEY:shape:k`, `:square:k` ([K, K]), `:rounded:k` and `:plain:k` ([K]).

    k counts strips. Squares of all strips but the last are added up in float64 inside the session.
    """
    values = values_by_name(graph)
    for key, observer in observers.items():
        value = values[observer.smoothed_input.tensor]
        if observer.kernel is not None and any(observer.kernel.pads):
            value = padded(graph, value, observer.kernel, f"{key}:padded")
        smoothed = add_smoothed(graph, value, observer.smoothed_input, f"{key}:view")
        rounded = smoothed
        if observer.qparams is not None:
            rounded = round_smoothed(
                graph, smoothed, observer.smoothed_input, observer.qparams, key
            )
        square: ir.Value | None = None
        for k in range(observer.strips):
            rows = strip_rows(graph, rounded, observer, k, f"{key}:rows:{k}")
            shape = add_node(graph, "Shape", [rows], f"{key}:shape:{k}")
            give(graph, shape, ir.DataType.INT64, 1)
            if observer.squares:
                square = add_square(graph, rows, square, observer.strips, f"{key}:square:{k}")
            if observer.means:
                give_sum(graph, rows, f"{key}:rounded:{k}")
                plain = rows
                if observer.qparams is not None:
                    plain = strip_rows(graph, smoothed, observer, k, f"{key}:plain_rows:{k}")
                give_sum(graph, plain, f"{key}:plain:{k}")
        if square is not None:
            kind = ir.DataType.FLOAT if observer.strips == 1 else ir.DataType.DOUBLE
            give(graph, square, kind, 2)


def add_square(
    graph: ir.Graph, rows: ir.Value, before: ir.Value | None, strips: int, name: str
) -> ir.Value:
    """Add rows^T rows to `before`, in float64 where there are several strips."""
    if strips == 1:
        return add_node(graph, "Gemm", [rows, rows], name, transA=1)
    product = add_node(graph, "Gemm", [rows, rows], f"{name}/product", transA=1)
    label = name if before is None else f"{name}/wide"
    wide = add_node(graph, "Cast", [product], label, to=int(ir.DataType.DOUBLE))
    return wide if before is None else add_node(graph, "Add", [before, wide], name)


def give_sum(graph: ir.Graph, rows: ir.Value, name: str) -> None:
    axis = constant(graph, f"{name}/axis", np.array([0], np.int64))
    give(graph, add_node(graph, "ReduceSum", [rows, axis], name, keepdims=0), ir.DataType.FLOAT, 1)


def give(graph: ir.Graph, value: ir.Value, kind: ir.DataType, rank: int) -> None:
    value.dtype, value.shape = kind, ir.Shape([None] * rank)
    graph.outputs.append(value)


def padded(graph: ir.Graph, value: ir.Value, kernel: Kernel, name: str) -> ir.Value:
    """Pad with zeros, as a convolution does before its input is scaled."""
    half = len(kernel.pads) // 2
    pads = np.array([0, 0, *kernel.pads[:half], 0, 0, *kernel.pads[half:]], np.int64)
    made = add_node(graph, "Pad", [value, constant(graph, f"{name}/pads", pads)], name)
    assert value.shape is not None
    made.shape, made.type = ir.Shape([None] * len(value.shape)), value.type
    return made


def strip_rows(
    graph: ir.Graph, value: ir.Value, observer: HessianObserver, k: int, name: str
) -> ir.Value:
    """Return rows [M, K] of every `strips`-th position of axis 1, or line of a convolution."""
    width = constant(graph, f"{name}/width", np.array([-1, observer.columns], np.int64))
    assert value.shape is not None
    rank = len(value.shape)
    if observer.kernel is None:
        if rank > 2 and observer.strips > 1:
            value = slice_of(graph, value, {1: (k, END, observer.strips)}, f"{name}/strip")
        return add_node(graph, "Reshape", [value, width], name)
    elements = [
        kernel_element(graph, value, observer, k, offsets, f"{name}/{index}")
        for index, offsets in enumerate(itertools.product(*map(range, observer.kernel.shape)))
    ]
    # [N, C, taps, ...] -> [N, ..., C, taps]
    patches = add_node(graph, "Concat", elements, f"{name}/patches", axis=2)
    turned = ir.node(
        "Transpose", [patches], {"perm": [0, *range(3, rank + 1), 1, 2]}, name=f"{name}/Transpose"
    )
    turned.outputs[0].name = f"{name}/turned"
    graph.append(turned)
    return add_node(graph, "Reshape", [turned.outputs[0], width], name)


def kernel_element(
    graph: ir.Graph,
    value: ir.Value,
    observer: HessianObserver,
    k: int,
    offsets: Sequence[int],
    name: str,
) -> ir.Value:
    """Return what one element of the kernel meets in the strip's lines, [N, C, 1, ...]."""
    assert observer.kernel is not None
    kernel = observer.kernel
    cuts = {}
    for axis, at in enumerate(offsets):
        stride, dilation = kernel.strides[axis], kernel.dilations[axis]
        rest = (kernel.shape[axis] - 1 - at) * dilation
        first, step = (k, observer.strips) if axis == 0 else (0, 1)
        cuts[axis + 2] = (at * dilation + first * stride, -rest or END, stride * step)
    found = slice_of(graph, value, cuts, f"{name}/kernel_element")
    axis_held = constant(graph, f"{name}/axis", np.array([2], np.int64))
    return add_node(graph, "Unsqueeze", [found, axis_held], name)


def slice_of(
    graph: ir.Graph, value: ir.Value, cuts: Mapping[int, tuple[int, int, int]], name: str
) -> ir.Value:
    """Cut a value by start, end and step of each axis."""
    starts, ends, steps = (list(column) for column in zip(*cuts.values(), strict=True))
    bounds = [
        constant(graph, f"{name}/{label}", np.array(numbers, np.int64))
        for label, numbers in (
            ("starts", starts),
            ("ends", ends),
            ("axes", list(cuts)),
            ("steps", steps),
        )
    ]
    return add_node(graph, "Slice", [value, *bounds], name)
