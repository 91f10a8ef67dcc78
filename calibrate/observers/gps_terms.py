"""Observe signal and noise by channel, which gain-projected scaling (GPS) needs of an input."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...numerics.qparams import QParams
from .reduce import Reducer, values_by_name
from .smoothed import SmoothedInput, add_smoothed, rounding_error


def observe_gps_terms(
    graph: ir.Graph, inputs: Mapping[str, SmoothedInput], qparams: Mapping[str, QParams]
) -> None:
    """Add outputs `KEY:signal` and `KEY:noise`, [N, C]: sums of x^2 and of the rounding error^2.

    Both are in units of the scale.
    """
    values = values_by_name(graph)
    for key, chosen in qparams.items():
        smoothed_input = inputs[key]
        seen = add_smoothed(graph, values[smoothed_input.tensor], smoothed_input, key)
        steps, error = rounding_error(graph, seen, smoothed_input, chosen, key)
        reducer = Reducer(graph, seen, smoothed_input.channel_axis)
        reducer.add(f"{key}:signal", steps, "ReduceSumSquare", "ReduceSum")
        reducer.add(f"{key}:noise", error, "ReduceSumSquare", "ReduceSum")
