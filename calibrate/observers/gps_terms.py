"""Signal and noise by channel: what gain-projected scaling (GPS) needs of an input."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from .reduce import Reducer, values_by_name
from .smoothed import Grid, View, add_view, rounding_error


def observe_gains(graph: ir.Graph, views: Mapping[str, View], grids: Mapping[str, Grid]) -> None:
    """Add outputs `KEY:signal` and `KEY:noise`, [N, C]: sums of x^2 and of the grid's error^2.

    Both are in steps of the grid.
    """
    values = values_by_name(graph)
    for key, grid in grids.items():
        view = views[key]
        seen = add_view(graph, values[view.tensor], view, key)
        steps, error = rounding_error(graph, seen, view, grid, key)
        reducer = Reducer(graph, seen, view.channel_axis)
        reducer.add(f"{key}:signal", steps, "ReduceSumSquare", "ReduceSum")
        reducer.add(f"{key}:noise", error, "ReduceSumSquare", "ReduceSum")
