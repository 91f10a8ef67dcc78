"""Observe a site's input as its quantizer will see it, before anything is folded.

A smoothed input is (x / scale - shift) / token_scale: a scale and a shift per channel, a relative
scale per token. The graph itself stays as it is; what is observed is what the folded graph
computes, so that scales can be chosen first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.builder import add_node, constant
from ...graph.sites import Site
from ...numerics.qparams import QParams
from .reduce import Reducer, value_named
from .run import Outputs

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SmoothedInput:
    """Describe the smoothed input of a tensor [N, T, C], or of any rank.

    `scale` and `shift` are [C], `token_scale` [T]; None leaves a step out. With `token_axis` None,
    tokens are not told apart. `position_ids` names the graph's value [n] or [N, n] that numbers the
    rows [N, n, C], below `positions`, where they lie in another order.
    """

    tensor: str
    channel_axis: int
    token_axis: int | None = None
    scale: Floats | None = None
    shift: Floats | None = None
    token_scale: Floats | None = None
    position_ids: str | None = None
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Define a scaling: subtract `center` (None: nothing), then divide [C] by `smoothing`."""

    smoothing: Floats
    center: Floats | None


def show_position_ids(
    graph: ir.Graph, inputs: Iterable[SmoothedInput], values: Mapping[str, ir.Value]
) -> None:
    """Make outputs of the values that the rows' positions are read from."""
    names = {
        smoothed_input.position_ids
        for smoothed_input in inputs
        if smoothed_input.token_axis is not None and smoothed_input.position_ids
    }
    graph.outputs.extend(
        values[name] for name in sorted(names) if not values[name].is_graph_output()
    )


def add_smoothed(
    graph: ir.Graph, value: ir.Value, smoothed_input: SmoothedInput, key: str
) -> ir.Value:
    """Add nodes that compute the smoothed input; their names begin with `key` and a slash."""
    rank = Reducer(graph, value, smoothed_input.channel_axis).rank
    steps: list[tuple[str, ir.Value]] = []

    def by_channel(name: str, values: Floats) -> ir.Value:
        shaped = along(values.astype(np.float32), smoothed_input.channel_axis, rank)
        return constant(graph, f"{key}/{name}", shaped)

    if smoothed_input.scale is not None:
        steps.append(("Mul", by_channel("scale", 1 / smoothed_input.scale)))
    if smoothed_input.shift is not None:
        steps.append(("Sub", by_channel("shift", smoothed_input.shift)))
    if smoothed_input.token_scale is not None:
        steps.append(
            (
                "Mul",
                by_position(
                    graph, value, smoothed_input, 1 / smoothed_input.token_scale, f"{key}/level"
                ),
            )
        )
    made = value
    for k, (op, by) in enumerate(steps):
        made = add_node(graph, op, [made, by], f"{key}/view.{k}")
    # With a slash, which no name of a user's graph has: the key alone can be one of its tensors.
    made = add_node(graph, "Identity", [made], f"{key}/smoothed")
    made.shape, made.type = value.shape, value.type
    return made


def rounding_error(
    graph: ir.Graph, smoothed: ir.Value, smoothed_input: SmoothedInput, qparams: QParams, label: str
) -> tuple[ir.Value, ir.Value]:
    """Return the smoothed input in units of the scale, and its distance to the nearest number."""
    steps, point = nearest_point(graph, smoothed, smoothed_input, qparams, label)
    return steps, add_node(graph, "Sub", [point, steps], f"{label}:error")


def round_smoothed(
    graph: ir.Graph, smoothed: ir.Value, smoothed_input: SmoothedInput, qparams: QParams, label: str
) -> ir.Value:
    """Return the smoothed input after rounding, in its own units."""
    _, point = nearest_point(graph, smoothed, smoothed_input, qparams, label)
    step = by_position(graph, smoothed, smoothed_input, qparams.scale, f"{label}:step")
    made = add_node(graph, "Mul", [point, step], f"{label}:rounded")
    made.shape, made.type = smoothed.shape, smoothed.type
    return made


def nearest_point(
    graph: ir.Graph, smoothed: ir.Value, smoothed_input: SmoothedInput, qparams: QParams, label: str
) -> tuple[ir.Value, ir.Value]:
    """Return the smoothed input in units of the scale, and the nearest number."""

    def stored(name: str, values: Floats) -> ir.Value:
        return by_position(graph, smoothed, smoothed_input, values, f"{label}:{name}")

    steps = add_node(
        graph, "Mul", [smoothed, stored("inverse", 1 / qparams.scale)], f"{label}:steps"
    )
    if qparams.dtype == "fp8":
        to = ir.DataType.FLOAT8E4M3FN
        number = add_node(graph, "Cast", [steps], f"{label}:fp8", to=int(to), saturate=1)
        return steps, add_node(graph, "Cast", [number], f"{label}:point", to=int(ir.DataType.FLOAT))
    low = qparams.low.astype(np.float64)
    rounded = add_node(graph, "Round", [steps], f"{label}:round")
    if np.all(low == low[0]):
        bounds = [stored("low", low[:1]), stored("high", low[:1] + 2**qparams.bits - 1)]
        return steps, add_node(graph, "Clip", [rounded, *bounds], f"{label}:point")
    # Max and Min, since a Clip has scalar bounds.
    raised = add_node(graph, "Max", [rounded, stored("low", low)], f"{label}:raised")
    clipped = add_node(
        graph, "Min", [raised, stored("high", low + 2**qparams.bits - 1)], f"{label}:point"
    )
    return steps, clipped


def by_position(
    graph: ir.Graph, smoothed: ir.Value, smoothed_input: SmoothedInput, values: Floats, name: str
) -> ir.Value:
    """Return a constant that broadcasts: a scalar, or each row's element of values [T].

    Rows in another order gather theirs by position ids.
    """
    assert smoothed.shape is not None
    if values.size == 1:
        return constant(graph, name, np.asarray(values[0], np.float32))
    if smoothed_input.position_ids is None:
        shaped = along(
            values.astype(np.float32), smoothed_input.token_axis or 0, len(smoothed.shape)
        )
        return constant(graph, name, shaped)
    table = constant(graph, f"{name}/table", values.astype(np.float32).reshape(-1, 1))
    position_ids = value_named(graph, smoothed_input.position_ids)
    return add_node(graph, "Gather", [table, position_ids], name, axis=0)


def along(values: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    """Return a vector in the shape that broadcasts over `axis` of a tensor of `rank` axes."""
    return values.reshape([-1 if k == axis else 1 for k in range(rank)])


def plain_input(site: Site) -> SmoothedInput:
    """Return the site's input without smoothing."""
    if not site.knows_positions:
        return SmoothedInput(site.input, site.channel_axis)
    smoothed_input = SmoothedInput(site.input, site.channel_axis, site.token_axis)
    if site.positions is None:
        return smoothed_input
    return replace(smoothed_input, position_ids=site.position_input, positions=site.positions)


def wide_sum(rows: NDArray[np.generic]) -> Floats:
    """Return the sum over the samples of a batch, in float64."""
    total: Floats = rows.astype(np.float64).sum(axis=0)
    return total


def position_sums(outputs: Outputs, name: str, smoothed_input: SmoothedInput) -> Floats:
    """Return sums over the samples of a batch, by token where the input tells tokens apart."""
    if smoothed_input.token_axis is None or smoothed_input.position_ids is None:
        return wide_sum(outputs[name])
    assert smoothed_input.positions is not None
    rows = outputs[name].astype(np.float64)
    places = np.broadcast_to(outputs[smoothed_input.position_ids].astype(np.int64), rows.shape)
    total: Floats = np.bincount(places.ravel(), rows.ravel(), smoothed_input.positions).astype(
        np.float64
    )
    return total
