"""What an FP16 twin keeps in FP32 because calibration saw it come near the end of float16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import onnx

from ..workspace.artifacts import MANIFEST, Manifest, Workspace
from ..workspace.stage import Reporter
from .calibrated import Calibrated

if TYPE_CHECKING:
    from .overflow import WideTensor


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
    from .overflow import collect_peaks, wide_tensors

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
    from .overflow import wide_tensors
    from .overflow_loop import collect_loop_peaks

    peaks = collect_loop_peaks(source.export, source.site_map, progress=reporter.progress)
    return wide_tensors(source.export, peaks)
