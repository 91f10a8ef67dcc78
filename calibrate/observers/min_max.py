"""Observe minimum, maximum and sum of squares, and read them as statistics of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...graph.builder import add_node
from ..statistics import TensorStats
from .reduce import Reducer, values_by_name
from .run import Outputs
from .smoothed import SmoothedInput, add_smoothed, position_sums, show_position_ids


def observe_ranges(
    graph: ir.Graph, tensors: Mapping[str, int], values: Mapping[str, ir.Value] | None = None
) -> None:
    """Add outputs `TENSOR:min`, `:max`, `:square` ([rows, C]) and `:shape`.

    `tensors` gives the axis of each that is kept, its channels; axis 0 is the batch, whose samples
    have one row or more each (see `Reducer`). `values` are the graph's by name, where they are
    known.
    """
    values = values_by_name(graph) if values is None else values
    for name, axis in tensors.items():
        reducer = Reducer(graph, values[name], axis)
        reducer.add(f"{name}:min", values[name], "ReduceMin")
        reducer.add(f"{name}:max", values[name], "ReduceMax")
        reducer.add(f"{name}:square", values[name], "ReduceSumSquare", "ReduceSum")
        shape = add_node(graph, "Shape", [values[name]], f"{name}:shape")
        shape.dtype, shape.shape = ir.DataType.INT64, ir.Shape([reducer.rank])
        graph.outputs.append(shape)


def observe_smoothed_ranges(graph: ir.Graph, inputs: Mapping[str, SmoothedInput]) -> None:
    """Add outputs `KEY:min`, `:max`, `:square` ([N, C]) and `:shape` of smoothed inputs.

    Where an input tells tokens apart, there are also `KEY/position:min` and so on, [N, T]; rows in
    another order have their position ids as an output.
    """
    values = values_by_name(graph)
    show_position_ids(graph, inputs.values(), values)
    for key, smoothed in inputs.items():
        value = add_smoothed(graph, values[smoothed.tensor], smoothed, key)
        observe_ranges(graph, {key: smoothed.channel_axis}, values | {key: value})
        if smoothed.token_axis is not None:
            observe_tokens(graph, value, smoothed.token_axis, key)


def observe_token_ranges(graph: ir.Graph, inputs: Mapping[str, SmoothedInput]) -> None:
    """Add outputs `KEY/position:min` and so on, [N, T], of inputs before any scaling."""
    values = values_by_name(graph)
    show_position_ids(graph, inputs.values(), values)
    for key, plain in inputs.items():
        assert plain.token_axis is not None
        observe_tokens(graph, values[plain.tensor], plain.token_axis, key)


def observe_tokens(graph: ir.Graph, value: ir.Value, token_axis: int, key: str) -> None:
    """Add outputs `KEY/position:min` and so on of one value."""
    again = add_node(graph, "Identity", [value], f"{key}/position")
    again.shape, again.type = value.shape, value.type
    observe_ranges(graph, {str(again.name): token_axis}, {str(again.name): again})


def batch_stats(outputs: Outputs, name: str) -> TensorStats:
    """Return the statistics of one batch, from its rows [N, C], in float64."""
    low, high, square = (
        outputs[f"{name}:{kind}"].astype(np.float64) for kind in ("min", "max", "square")
    )
    count = int(np.prod(outputs[f"{name}:shape"].astype(np.int64))) // low.shape[1]
    return TensorStats(low.min(axis=0), high.max(axis=0), square.sum(axis=0), count)


def position_stats(outputs: Outputs, key: str, smoothed_input: SmoothedInput) -> TensorStats:
    """Return the statistics of a batch by token; those of a token without rows are empty."""
    name = f"{key}/position"
    if smoothed_input.position_ids is None:
        return batch_stats(outputs, name)
    assert smoothed_input.positions is not None
    rows, channels = (
        outputs[f"{name}:min"].shape,
        int(outputs[f"{name}:shape"][smoothed_input.channel_axis]),
    )
    position_ids = np.broadcast_to(outputs[smoothed_input.position_ids].astype(np.int64), rows)
    low, high = (
        np.full(smoothed_input.positions, np.inf),
        np.full(smoothed_input.positions, -np.inf),
    )
    np.minimum.at(low, position_ids, outputs[f"{name}:min"].astype(np.float64))
    np.maximum.at(high, position_ids, outputs[f"{name}:max"].astype(np.float64))
    counts = np.bincount(position_ids.ravel(), minlength=smoothed_input.positions) * channels
    return TensorStats(low, high, position_sums(outputs, f"{name}:square", smoothed_input), counts)
