"""The largest magnitude of every float tensor of a Q/DQ graph, so that none overflows in half.

Float16 ends at 65504, and calibration does not see every input: what comes within a quarter of it
is told. A quantized linear whose product does, before the channels' factor, is to stay in high
precision; any other tensor is to stay in FP32 in the FP16 twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..calibrate.observers.reduce import finite
from ..calibrate.observers.run import Outputs, Progress, is_empty, run_instrumented
from ..graph.builder import add_node, constant, constant_array
from ..graph.io import load_graph
from ..graph.sites import Site, SiteMap
from ..numerics.scheme import Plan, SitePlan
from ..workspace.artifacts import MANIFEST, Manifest, Workspace
from ..workspace.stage import Reporter
from .calibrated import Calibrated
from .run import SiteResult

LIMIT = 65504 / 4
SAMPLES = 16  # that are run: one pass over the Q/DQ graph
MASK = -1e30  # what is below is a mask, to which float16 has an end of its own
CONVERTING = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Shape", "Size"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum"})

TOO_WIDE = "its product reaches {:.4g} in front of the channel factor, too near float16's 65504"

Peaks = dict[str, dict[str, float]]
Make = Callable[[Mapping[str, SitePlan]], tuple[Plan, list[SiteResult]]]


@dataclass(frozen=True, slots=True)
class WideTensor:
    """A tensor that comes near the end of float16; `nodes` make it or read it, by name."""

    graph: str
    tensor: str
    max: float
    nodes: tuple[str, ...]


def collect_peaks(
    folder: Path, samples: Path, graphs: Sequence[str], *, batch_size: int, progress: Progress
) -> Peaks:
    """max |x| of the float tensors that `graphs` compute, by graph and tensor.

    Constants, masks and what a mask was added to are left out.
    """
    peaks: Peaks = {graph: {} for graph in graphs}

    def consume(graph: str, outputs: Outputs) -> None:
        keep_peaks(peaks[graph], outputs)

    run_instrumented(
        folder,
        samples,
        graphs,
        batch_size=batch_size,
        instrument=lambda _, graph: observe_peaks(graph),
        consume=consume,
        progress=progress,
        part=slice(SAMPLES),
    )
    return peaks


def observe_peaks(graph: ir.Graph) -> None:
    """Add outputs `TENSOR:peak_low`, `:peak_high`, scalars, and `:shape` of each float computed."""
    axes = constant(graph, "peak/axes", np.zeros(0, np.int64))
    for value in computed_floats(graph):
        seen = finite(graph, value)
        shape = add_node(graph, "Shape", [value], f"{value.name}:shape")
        shape.dtype = ir.DataType.INT64
        graph.outputs.append(shape)
        for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax")):
            name = f"{value.name}:peak_{kind}"
            found = add_node(graph, op, [seen, axes], name, keepdims=0)
            found.dtype, found.shape = ir.DataType.FLOAT, ir.Shape([])
            graph.outputs.append(found)


def keep_peaks(peaks: dict[str, float], outputs: Outputs) -> None:
    """Raise the peaks of tensors by what a run of a graph with observers gave."""
    for name, values in outputs.items():
        tensor, _, kind = name.rpartition(":")
        if kind in ("peak_low", "peak_high") and not is_empty(outputs, name):
            # Of Python's max NaN would not come.
            peaks[tensor] = float(np.maximum(peaks.get(tensor, 0.0), abs(float(values))))


def computed_floats(graph: ir.Graph) -> list[ir.Value]:
    """Float tensors that depend on an input, but on no mask unless through a softmax."""
    floats = {v for v in graph.inputs if v.dtype == ir.DataType.FLOAT}
    fixed = set(graph.initializers.values())
    masked = {v for v in fixed if holds_mask(v)}
    found = []
    for node in graph:
        given = [v for v in node.inputs if v is not None]
        for value in node.outputs:
            if makes_float(node, value, floats):
                floats.add(value)
            if node.op_type != "Softmax" and masked.intersection(given):
                masked.add(value)
            if fixed.issuperset(given):
                fixed.add(value)
            elif value in floats and value not in masked:
                found.append(value)
    return found


def holds_mask(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT or value.const_value is None:
        return False
    array = constant_array(value)
    return bool(array.size) and float(array.min()) < MASK


def makes_float(node: ir.Node, value: ir.Value, floats: set[ir.Value]) -> bool:
    """Nodes that were inserted have no types yet: they are as their first input, or convert."""
    if value.dtype is not None:
        return value.dtype == ir.DataType.FLOAT
    if node.op_type in CONVERTING:
        return node.op_type == "DequantizeLinear"
    return node.inputs[0] in floats


def quantize_in_range(
    make: Make,
    folder: Path,
    samples: Path,
    site_map: SiteMap,
    graphs: Sequence[str],
    entries: Mapping[str, SitePlan],
    *,
    batch_size: int,
    progress: Progress,
) -> tuple[Plan, list[SiteResult], list[WideTensor]]:
    """What `make` writes into `folder` by the plan `entries`, without sites that overflow in half.

    Those stay in high precision, with the reason in the plan. Also returns the tensors of `graphs`
    that have to be FP32 in an FP16 twin.
    """
    plan, results = make(entries)
    peaks = collect_peaks(folder, samples, graphs, batch_size=batch_size, progress=progress)
    hot: dict[str, float] = {}
    for name in graphs:
        graph = load_graph(folder / f"{name}.onnx").graph
        hot |= overflowing(graph, site_map.of_graph(name), entries, peaks[name])
    if hot:
        high = {name: SitePlan(name=name, reason=TOO_WIDE.format(v)) for name, v in hot.items()}
        plan, results = make({**entries, **high})
        peaks = collect_peaks(folder, samples, graphs, batch_size=batch_size, progress=progress)
    return plan, results, wide_tensors(folder, peaks)


def overflowing(
    graph: ir.Graph, sites: Sequence[Site], entries: Mapping[str, SitePlan], peaks: dict[str, float]
) -> dict[str, float]:
    """By name the sites whose product passes the limit in front of its channel factor."""
    products = {str(node.name): str(node.outputs[0].name) for node in graph}
    found = {}
    for site in sites:
        entry = entries.get(site.name)
        if entry is None or entry.activation is None or site.weight is None or site.op == "Conv":
            continue
        peak = peaks.get(products.get(site.node, ""), 0.0)
        if not peak <= LIMIT:
            found[site.name] = peak
    return found


def wide_tensors(folder: Path, peaks: Peaks) -> list[WideTensor]:
    """Tensors of the graphs in `folder` beyond the limit, in graph order."""
    found = []
    for name, by_tensor in peaks.items():
        graph = load_graph(folder / f"{name}.onnx").graph
        for node in graph:
            for value in node.outputs:
                peak = by_tensor.get(str(value.name), 0.0)
                users = {user for user, _ in value.uses()}
                if not peak <= LIMIT and not is_square(node, users):
                    names = (str(n.name) for n in (node, *sorted(users, key=lambda n: str(n.name))))
                    found.append(WideTensor(name, str(value.name), peak, tuple(names)))
    return found


def is_square(node: ir.Node, users: set[ir.Node]) -> bool:
    """Squares that only sums read stay in FP32 anyway."""
    itself = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    squares = itself or node.op_type == "Pow"
    return squares and bool(users) and {user.op_type for user in users} <= REDUCTIONS


Listed = list[dict[str, Any]]


def fp32_nodes(listed: Iterable[Mapping[str, Any]], model: onnx.ModelProto) -> list[str]:
    """Nodes of `model` that make or read a listed tensor.

    They are found by name: the graphs of a model call the nodes of one module alike.
    """
    names = {name for tensor in listed for name in tensor["nodes"]}
    return [node.name for node in model.graph.node if node.name in names]


def listed_tensors(quantized: Manifest) -> Listed:
    """What `quantize` told of its graphs."""
    return list(quantized.results.get("fp32_tensors", ()))


def find_calibration(workspace: Workspace, reporter: Reporter) -> Manifest | None:
    """What calibration told; without one, a warning of what cannot be known."""
    if not (workspace.folder("calibrate") / MANIFEST).is_file():
        reporter.warn(
            "not calibrated: whether the unquantized graphs overflow in FP16 is not known"
        )
        return None
    return workspace.manifest("calibrate", stage="calibrate")


def unquantized_wide_tensors(workspace: Workspace, reporter: Reporter) -> Listed:
    """Those of the FP32 graphs, as a quantization's manifest lists its own.

    Raises:
        CalibrationError: statistics of another export, or a value that is not finite.
    """

    source = Calibrated.open(workspace)
    peaks = collect_peaks(
        source.export,
        source.samples,
        source.planned.graphs,
        batch_size=source.batch_size,
        progress=reporter.progress,
    )
    found = wide_tensors(source.export, peaks)
    if source.generates:
        found += unplanned_wide_tensors(source, reporter)
    return [asdict(tensor) for tensor in found]


def unplanned_wide_tensors(source: Calibrated, reporter: Reporter) -> list[WideTensor]:
    """Those of graphs that no plan changes: a generator's decoder, VAR's updates."""
    from .overflow_loop import collect_loop_peaks

    peaks = collect_loop_peaks(source.export, source.site_map, progress=reporter.progress)
    return wide_tensors(source.export, peaks)
