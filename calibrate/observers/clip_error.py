"""Sum the rounding errors of candidate quantization parameters, by channel or by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import add_node, constant
from ...numerics.qparams import QParams
from .reduce import Reducer, values_by_name
from .run import Outputs
from .smoothed import (
    Scaling,
    SmoothedInput,
    add_smoothed,
    position_sums,
    rounding_error,
    show_position_ids,
    wide_sum,
)

Floats = NDArray[np.float64]
Power = Literal[2, 4]  # to which errors are raised before they are summed
ErrorPairs = list[tuple[Floats, Floats]]  # by candidate sums of error^2 and of error^4, [C]


def observe_channel_clip_errors(
    graph: ir.Graph,
    candidates: Mapping[str, Sequence[QParams]],
    scalings: Mapping[str, Scaling],
    channel_axes: Mapping[str, int],
) -> None:
    """Add outputs `TENSOR:k:e2` and `:k:e4` ([N, C]): sums of error**2 and error**4.

    The error is in units of candidate k's scale: (x - center) / (smoothing * scale) minus the
    nearest number. Candidates are per tensor.
    """
    values = values_by_name(graph)
    for name, tried in candidates.items():
        scaling = scalings[name]
        smoothing = scaling.smoothing.astype(np.float32).astype(np.float64)
        reducer = Reducer(graph, values[name], channel_axes[name])
        for k, qparams in enumerate(tried):
            label = f"{name}:{k}"
            low, high = (int(qparams.low[0]) + n for n in (0, 2**qparams.bits - 1))
            step = (smoothing * float(qparams.scale[0])).astype(np.float32)
            inverse = constant(graph, f"{label}:inverse", reducer.by_channel(1 / step))
            bounds = [
                constant(graph, f"{label}:{n}", np.float32(v))
                for n, v in (("low", low), ("high", high))
            ]
            grid_x = add_node(graph, "Mul", [values[name], inverse], f"{label}:x")
            if scaling.center is not None:
                steps = (scaling.center.astype(np.float32).astype(np.float64) / step).astype(
                    np.float32
                )
                center = constant(graph, f"{label}:center", reducer.by_channel(steps))
                grid_x = add_node(graph, "Sub", [grid_x, center], f"{label}:centered")
            rounded = add_node(graph, "Round", [grid_x], f"{label}:round")
            clipped = add_node(graph, "Clip", [rounded, *bounds], f"{label}:clip")
            error = add_node(graph, "Sub", [clipped, grid_x], f"{label}:error")
            square = add_node(graph, "Mul", [error, error], f"{label}:square")
            reducer.add(f"{label}:e2", square, "ReduceSum")
            reducer.add(f"{label}:e4", square, "ReduceSumSquare", "ReduceSum")


def batch_channel_clip_errors(outputs: Outputs, name: str, tried: Sequence[QParams]) -> ErrorPairs:
    """Return a batch's sums of what `observe_channel_clip_errors` added, in units of the tensor."""
    return [
        (
            wide_sum(outputs[f"{name}:{k}:e2"]) * float(qparams.scale[0]) ** 2,
            wide_sum(outputs[f"{name}:{k}:e4"]) * float(qparams.scale[0]) ** 4,
        )
        for k, qparams in enumerate(tried)
    ]


def added_pairs(one: ErrorPairs, other: ErrorPairs) -> ErrorPairs:
    """Return the sums of two batches together."""
    return [(a + c, b + d) for (a, b), (c, d) in zip(one, other, strict=True)]


def observe_clip_errors(
    graph: ir.Graph,
    inputs: Mapping[str, SmoothedInput],
    candidates: Mapping[str, Sequence[QParams]],
    gains: Mapping[str, Floats],
    powers: Sequence[Power],
) -> None:
    """Add outputs `KEY:k:e2` and `:e4`: sums of (gain * error)^2 and ^4 of each candidate.

    Errors are in units of `error_unit`, and only of the given `powers`. `gains` are [C]. Sums are
    [N, T] where the input tells tokens apart, else [N, C]; rows in another order have their
    position ids as an output.
    """
    values = values_by_name(graph)
    show_position_ids(graph, [inputs[key] for key in candidates], values)
    for key, tried in candidates.items():
        smoothed_input = inputs[key]
        smoothed = add_smoothed(graph, values[smoothed_input.tensor], smoothed_input, key)
        axis = (
            smoothed_input.channel_axis
            if smoothed_input.token_axis is None
            else smoothed_input.token_axis
        )
        by_channel, reducer = (
            Reducer(graph, smoothed, smoothed_input.channel_axis),
            Reducer(graph, smoothed, axis),
        )
        gain = constant(graph, f"{key}:gain", by_channel.by_channel(gains[key].astype(np.float32)))
        for k, qparams in enumerate(tried):
            error = rounding_distance(graph, smoothed, smoothed_input, qparams, f"{key}:{k}")
            weighted = add_node(graph, "Mul", [error, gain], f"{key}:{k}:weighted")
            if 2 in powers:
                reducer.add(f"{key}:{k}:e2", weighted, "ReduceSumSquare", "ReduceSum")
            if 4 in powers:
                square = add_node(graph, "Mul", [weighted, weighted], f"{key}:{k}:squared")
                reducer.add(f"{key}:{k}:e4", square, "ReduceSumSquare", "ReduceSum")


def batch_clip_errors(
    outputs: Outputs,
    key: str,
    smoothed_input: SmoothedInput,
    tried: Sequence[QParams],
    power: Power,
) -> Floats:
    """Return a batch's sums of (gain * error)^power by candidate, [candidates, T].

    T is 1 where the input does not tell tokens apart. Errors are in units of the input.
    """
    names = [f"{key}:{k}:e{power}" for k in range(len(tried))]
    total = np.stack([position_sums(outputs, name, smoothed_input) for name in names])
    if smoothed_input.token_axis is None:
        total = total.sum(axis=1, keepdims=True)
    units = [error_unit(smoothed_input, qparams) for qparams in tried]
    total *= np.stack([unit**power for unit in units])
    return total


def fits_operators(smoothed_input: SmoothedInput, qparams: QParams) -> bool:
    """Return whether QuantizeLinear can do the rounding: rows in order, int8 zero points.

    The sums of a clip's errors take 0.46 ms with it, 0.63 with `nearest_point`, of [256, 4096].
    """
    least, most = int(qparams.zero_point.min()), int(qparams.zero_point.max())
    fits = least >= -128 and most <= 127
    return qparams.dtype == "int" and smoothed_input.position_ids is None and fits


def error_unit(smoothed_input: SmoothedInput, qparams: QParams) -> Floats:
    """Return the size of an error of 1 in the sums of `observe_clip_errors`, [T] or [1]."""
    return np.ones_like(qparams.scale) if fits_operators(smoothed_input, qparams) else qparams.scale


def rounding_distance(
    graph: ir.Graph, smoothed: ir.Value, smoothed_input: SmoothedInput, qparams: QParams, label: str
) -> ir.Value:
    """Return a smoothed input's distance to its rounded value, in units of `error_unit`."""
    if not fits_operators(smoothed_input, qparams):
        _, error = rounding_error(graph, smoothed, smoothed_input, qparams, label)
        return error
    axis = smoothed_input.token_axis or 0

    def parameter(name: str, values: NDArray[np.generic]) -> ir.Value:
        return constant(graph, f"{label}:{name}", values[0] if values.size == 1 else values)

    step, zero = (
        parameter("step", qparams.scale.astype(np.float32)),
        parameter("zero", qparams.zero_point.astype(np.int8)),
    )
    q = add_node(graph, "QuantizeLinear", [smoothed, step, zero], f"{label}:q", axis=axis)
    if qparams.bits < 8:
        ends = np.array([-(2 ** (qparams.bits - 1)), 2 ** (qparams.bits - 1) - 1], np.int8)
        bounds = [parameter("low", ends[:1]), parameter("high", ends[1:])]
        q = add_node(graph, "Clip", [q, *bounds], f"{label}:clipped")
    point = add_node(graph, "DequantizeLinear", [q, step, zero], f"{label}:point", axis=axis)
    return add_node(graph, "Sub", [point, smoothed], f"{label}:error")
