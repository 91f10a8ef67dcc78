"""Write half-precision copies of a workspace's graphs, as TensorRT builds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import WorkspaceError
from ...graph.sites import Site
from ...quantize.facts import OverflowTensor
from ...quantize.overflow import fp32_nodes

if TYPE_CHECKING:
    from .half_precision import HalfType

LARGE = 1024  # bytes; constants of this size and more lie beside the graph


def half_precision_files(graph: str) -> tuple[str, str]:
    """Return the names of a copy's files; small graphs have no second one."""
    return f"{graph}.onnx", f"{graph}.onnx.data"


def write_half_precision(
    source: Path,
    graph: str,
    sites: Sequence[Site],
    target: Path,
    wide: Sequence[OverflowTensor],
    half: HalfType,
) -> Path:
    """Write the half-precision copy of a graph of `source` to `target`; return its path.

    What `wide` lists stays in FP32, and so do searches of codes.

    Raises:
        WorkspaceError: the graph or its weights cannot be read, as by every other stage.
    """
    import onnx

    from ...graph.io import read_proto, require_weights
    from .half_precision import to_half_precision

    decide = [site.node for site in sites if site.role == "codes"]
    model = read_proto(source / f"{graph}.onnx")
    require_weights(model, source / f"{graph}.onnx", WorkspaceError)
    onnx.load_external_data_for_model(model, str(source))
    converted = to_half_precision(model, keep_fp32=[*decide, *fp32_nodes(wide, model)], dtype=half)
    name, data = half_precision_files(graph)
    path = target / name
    onnx.save(
        converted,
        path,
        save_as_external_data=True,
        location=data,
        size_threshold=LARGE,
    )
    return path
