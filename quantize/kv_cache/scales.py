"""Choose the scales of stored keys and values on the graph of all positions.

Ranges and clips are those of the first half of the samples, by head and by channel of a head; which
of both loses less, the second half says. The scales then reach as far as all samples do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.clip_error import batch_clip_errors, observe_clip_errors
from ...calibrate.observers.min_max import batch_stats, observe_ranges
from ...calibrate.observers.run import Outputs
from ...calibrate.observers.smoothed import SmoothedInput
from ...calibrate.statistics import Statistics, TensorStats
from ...graph.builder import add_node, constant
from ...graph.io import load_graph
from ...graph.sites import SiteMap
from ...numerics.noise import rounding_sqnr_db
from ...numerics.qparams import QParams
from ...numerics.scheme import ActivationFormat, CacheGranularity, CachePlan
from ..qdq.kv_cache import CachedAttention, CacheScales, cached_attentions
from ..token_qparams import best_grid, format_candidates

Floats = NDArray[np.float64]
TOKENS, CHANNELS = 1, 2  # axes of what is observed, [N, T, H * d]
GRANULARITIES: tuple[CacheGranularity, ...] = ("per_head", "per_channel")
FORMATS = {
    "int8": ActivationFormat(bits=8),
    "fp8": ActivationFormat(bits=8, grid="fp8"),
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """Hold scales [H * d] of keys or values, and their SQNR in dB on samples not fitted to."""

    granularity: CacheGranularity
    scale: Floats
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Name one tensor that is stored: keys or values [N, H, T, d] of an attention."""

    attention: str
    tensor: str
    heads: int
    channels: int
    tokens: int
    wanted: ActivationFormat
    granularities: tuple[CacheGranularity, ...]

    @property
    def flat(self) -> str:
        """Return the name of the tensor as [N, T, H * d]."""
        return f"{self.tensor}/flat"

    @property
    def view(self) -> SmoothedInput:
        """Return what is observed: channels in the place of positions, which have scales each."""
        return SmoothedInput(self.flat, TOKENS, CHANNELS)


def fit_caches(
    run: CalibrationRun, graph: str, site_map: SiteMap, plans: Mapping[str, CachePlan]
) -> dict[str, dict[str, Fitted]]:
    """Return, by attention, the scales of its `key` and `value`.

    Raises:
        CalibrationError: fewer than two samples.
    """
    model = load_graph(run.export / f"{graph}.onnx")
    attentions = cached_attentions(model.graph, site_map.of_graph(graph))
    stored = {
        f"{attention.name}.{side}": entry
        for attention in attentions
        if plans[attention.name].type in FORMATS
        for side, entry in stored_tensors(attention, plans[attention.name]).items()
    }
    if not stored:
        return {}
    run = run.on(graph)
    fitted, judged = run.first_half(), run.second_half()
    ranges = flat_ranges(fitted, stored)
    grids = best_grids(fitted, stored, ranges)
    later = flat_ranges(judged, stored)
    errors = clip_sums(judged, stored, {k: [g for g, _ in tried] for k, tried in grids.items()})
    found: dict[str, dict[str, Fitted]] = {}
    for key, entry in stored.items():
        noise = errors[key].sum(axis=1)
        best = int(np.argmin(noise))
        db = rounding_sqnr_db(float(later[key].square.sum()), float(noise[best]))
        whole = ranges[key].merge(later[key])
        granularity, (_, choice) = entry.granularities[best], grids[key][best]
        tried = candidates(entry, granularity, whole)
        scale = np.stack([each.scale for each in tried])[choice, np.arange(len(choice))]
        side = key.rpartition(".")[2]
        found.setdefault(entry.attention, {})[side] = Fitted(granularity, scale, db)
    return found


def stored_tensors(attention: CachedAttention, plan: CachePlan) -> dict[str, Stored]:
    """Return the keys and values of an attention."""
    heads, channels = attention.heads
    found = {}
    for side, value, asked in (
        ("key", attention.key, plan.keys),
        ("value", attention.value, plan.values),
    ):
        assert value.shape is not None
        tried = GRANULARITIES if asked is None else (asked,)
        tokens = int(value.shape[2])  # type: ignore[arg-type]
        found[side] = Stored(
            attention.name, str(value.name), heads, channels, tokens, FORMATS[plan.type], tried
        )
    return found


def flatten(graph: ir.Graph, stored: Mapping[str, Stored]) -> None:
    """Add each stored tensor as [N, T, H * d] to a graph."""
    values = {str(value.name): value for node in graph for value in node.outputs}
    for entry in stored.values():
        order = [0, 2, 1, 3]
        turned = ir.node("Transpose", [values[entry.tensor]], {"perm": order})
        turned.name, turned.outputs[0].name = f"{entry.flat}/Transpose", f"{entry.flat}/turned"
        graph.append(turned)
        shape = np.array([-1, entry.tokens, entry.heads * entry.channels], np.int64)
        target = constant(graph, f"{entry.flat}/shape", shape)
        made = add_node(graph, "Reshape", [turned.outputs[0], target], entry.flat)
        made.dtype = ir.DataType.FLOAT
        made.shape = ir.Shape([None, entry.tokens, entry.heads * entry.channels])


def flat_ranges(run: CalibrationRun, stored: Mapping[str, Stored]) -> Statistics:
    """Return the statistics of every channel of every head, [H * d], by key."""
    total: Statistics = {}

    def instrument(_: str, graph: ir.Graph) -> None:
        flatten(graph, stored)
        observe_ranges(graph, {entry.flat: CHANNELS for entry in stored.values()})

    def consume(_: str, outputs: Outputs) -> None:
        for key, entry in stored.items():
            stats = batch_stats(outputs, entry.flat)
            total[key] = total[key].merge(stats) if key in total else stats

    run.observe(instrument, consume)
    return total


def clip_sums(
    run: CalibrationRun, stored: Mapping[str, Stored], grids: Mapping[str, Sequence[QParams]]
) -> dict[str, Floats]:
    """Return sums of squared errors of each grid, [grids, H * d], by key."""
    views = {key: entry.view for key, entry in stored.items()}
    gains = {key: np.ones(entry.tokens) for key, entry in stored.items()}
    sums: dict[str, Floats] = {}

    def instrument(_: str, graph: ir.Graph) -> None:
        flatten(graph, stored)
        observe_clip_errors(graph, views, grids, gains, (2,))

    def consume(_: str, outputs: Outputs) -> None:
        for key, tried in grids.items():
            sums[key] = sums.get(key, 0.0) + batch_clip_errors(outputs, key, views[key], tried, 2)

    run.observe(instrument, consume)
    return sums


def best_grids(
    run: CalibrationRun, stored: Mapping[str, Stored], ranges: Statistics
) -> dict[str, list[tuple[QParams, NDArray[np.intp]]]]:
    """Return the best clip of each channel and which candidate it is, for each granularity."""
    tried = {
        key: [candidates(entry, kind, ranges[key]) for kind in entry.granularities]
        for key, entry in stored.items()
    }
    flat = {key: [grid for grids in kinds for grid in grids] for key, kinds in tried.items()}
    errors = clip_sums(run, stored, flat)
    found: dict[str, list[tuple[QParams, NDArray[np.intp]]]] = {}
    for key, entry in stored.items():
        start = 0
        found[key] = []
        for kind, grids in zip(entry.granularities, tried[key], strict=True):
            own = errors[key][start : start + len(grids)]
            start += len(grids)
            if kind == "per_head":
                by_head = own.reshape(len(grids), entry.heads, entry.channels)
                summed = by_head.sum(axis=2, keepdims=True)
                own = np.broadcast_to(summed, by_head.shape).reshape(own.shape)
            found[key].append(best_grid(grids, own, run.size))
    return found


def candidates(entry: Stored, kind: CacheGranularity, ranges: TensorStats) -> list[QParams]:
    """Return grids [H * d] for channels of these ranges; those of a head are alike per head."""
    if kind == "per_head":
        ranges = head_ranges(ranges, entry.heads)
    found = format_candidates(ranges, entry.wanted, allow_shift=False)
    if kind == "per_channel":
        return found
    return [
        QParams.symmetric(np.repeat(grid.scale, entry.channels), grid.bits, grid.dtype)
        for grid in found
    ]


def head_ranges(ranges: TensorStats, heads: int) -> TensorStats:
    """Return the statistics of heads [H] from those of their channels [H * d]."""
    low, high, square = (
        np.reshape(each, (heads, -1)) for each in (ranges.low, ranges.high, ranges.square)
    )
    count = ranges.count * low.shape[1]
    return TensorStats(low.min(axis=1), high.max(axis=1), square.sum(axis=1), count)


def scales_of(fitted: Mapping[str, Fitted], heads: int) -> CacheScales:
    """Return the scales of an attention's keys and values, [H, d] each."""
    key, value = (
        fitted[side].scale.astype(np.float32).reshape(heads, -1) for side in ("key", "value")
    )
    return CacheScales(key, value)
