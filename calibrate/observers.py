"""Observers: reduction nodes in an instrumented copy of a graph.

Only small vectors leave the session: [N, C] per tensor and statistic, whatever the image size and
however many samples. Each reduction runs over one axis of at most a few thousand terms, since
ONNX Runtime's long float32 sums are wrong by 1e-4 and more; the rest is added in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClipCandidate:
    """One candidate grid of a tensor: round((x - center) / (smoothing * scale)) - shift.

    `smoothing` and `center` are [C] (None: no centre); the grid has 2**bits points.
    """

    smoothing: Floats
    scale: float
    shift: int
    bits: int
    center: Floats | None = None


def load_graph(path: Path) -> ir.Model:
    """Read a graph; weights stay mapped in their external file."""
    return ir.load(path)


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {str(v.name): v for v in graph.inputs}
    for node in graph:
        values.update((str(v.name), v) for v in node.outputs)
    return values


def constant(graph: ir.Graph, name: str, value: NDArray[Any] | np.generic) -> ir.Value:
    """Register an initializer."""
    array = np.asarray(value)
    made = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    made.shape = ir.Shape(array.shape)
    made.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(made)
    return made


def observe_ranges(graph: ir.Graph, tensors: Sequence[str]) -> None:
    """Add outputs `TENSOR:min`, `:max`, `:square` ([N, C]) and `:pixels` (the shape), NCHW."""
    values = values_by_name(graph)
    width = constant(graph, "observer.width", np.array([3], np.int64))
    height = constant(graph, "observer.height", np.array([2], np.int64))
    for name in tensors:
        for kind, ops in {
            "min": ("ReduceMin", "ReduceMin"),
            "max": ("ReduceMax", "ReduceMax"),
            "square": ("ReduceSumSquare", "ReduceSum"),
        }.items():
            add_reduction(graph, values[name], f"{name}:{kind}", ops, (width, height))
        shape = chain(graph, "Shape", [values[name]], f"{name}:pixels")
        shape.dtype, shape.shape = ir.DataType.INT64, ir.Shape([4])
        graph.outputs.append(shape)


def observe_clip_errors(graph: ir.Graph, candidates: Mapping[str, Sequence[ClipCandidate]]) -> None:
    """Add outputs `TENSOR:k:e2` and `:k:e4` ([N, C]): sums of error**2 and error**4.

    The error is in steps of grid k: (x - center) / (smoothing * scale) minus its grid point.
    """
    values = values_by_name(graph)
    width = constant(graph, "observer.width", np.array([3], np.int64))
    height = constant(graph, "observer.height", np.array([2], np.int64))
    for name, grids in candidates.items():
        for k, grid in enumerate(grids):
            label = f"{name}:{k}"
            low = -(2 ** (grid.bits - 1)) + grid.shift
            high = 2 ** (grid.bits - 1) - 1 + grid.shift
            step = (grid.smoothing.astype(np.float64) * grid.scale).astype(np.float32)
            inverse = constant(graph, f"{label}:inverse", (1 / step).reshape(1, -1, 1, 1))
            bounds = [
                constant(graph, f"{label}:{n}", np.float32(v))
                for n, v in (("low", low), ("high", high))
            ]
            grid_x = chain(graph, "Mul", [values[name], inverse], f"{label}:x")
            if grid.center is not None:
                steps = (grid.center.astype(np.float64) / step).astype(np.float32)
                center = constant(graph, f"{label}:center", steps.reshape(1, -1, 1, 1))
                grid_x = chain(graph, "Sub", [grid_x, center], f"{label}:centered")
            rounded = chain(graph, "Round", [grid_x], f"{label}:round")
            clipped = chain(graph, "Clip", [rounded, *bounds], f"{label}:clip")
            error = chain(graph, "Sub", [clipped, grid_x], f"{label}:error")
            square = chain(graph, "Mul", [error, error], f"{label}:square")
            for kind, value, ops in (
                ("e2", square, ("ReduceSum", "ReduceSum")),
                ("e4", square, ("ReduceSumSquare", "ReduceSum")),
            ):
                add_reduction(graph, value, f"{label}:{kind}", ops, (width, height))


def add_reduction(
    graph: ir.Graph,
    value: ir.Value,
    output: str,
    ops: tuple[str, str],
    axes: tuple[ir.Value, ir.Value],
) -> None:
    rows = chain(graph, ops[0], [value, axes[0]], f"{output}:rows", keepdims=0)
    total = chain(graph, ops[1], [rows, axes[1]], output, keepdims=0)
    total.dtype = ir.DataType.FLOAT
    total.shape = ir.Shape([None, None])
    graph.outputs.append(total)


def chain(
    graph: ir.Graph, op: str, inputs: Sequence[ir.Value], output: str, **attributes: int
) -> ir.Value:
    node = ir.node(op, inputs, attributes, name=f"{output}/{op}")
    node.outputs[0].name = output
    graph.append(node)
    return node.outputs[0]


def graph_bytes(model: ir.Model) -> bytes:
    """Serialize a changed graph; its weights stay in the file that they were mapped from."""
    return bytes(ir.to_proto(model).SerializeToString())
