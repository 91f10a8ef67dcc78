"""Write half-precision copies of a workspace's graphs, as TensorRT builds them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import WorkspaceError
from ...graph.sites import EXACT_ROLES, Site
from ...quantize.facts import OverflowTensor
from ...quantize.overflow import fp32_nodes

if TYPE_CHECKING:
    import onnx

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

    What `wide` lists stays in FP32, and so do searches of codes and what is looked up for them.

    Raises:
        WorkspaceError: the graph or its weights cannot be read, as by every other stage.
    """
    import onnx

    from ...graph.io import read_proto, require_weights
    from .half_precision import to_half_precision

    decide = [site.node for site in sites if site.role in EXACT_ROLES]
    model = read_proto(source / f"{graph}.onnx")
    require_weights(model, source / f"{graph}.onnx", WorkspaceError)
    onnx.load_external_data_for_model(model, str(source))
    converted = to_half_precision(model, keep_fp32=[*decide, *fp32_nodes(wide, model)], dtype=half)
    name, data = half_precision_files(graph)
    save_with_data(converted, target / name, data)
    return target / name


def save_with_data(model: onnx.ModelProto, path: Path, data: str) -> None:
    """Save a model with its large constants in the file `data` beside it.

    `onnx.save` with `save_as_external_data` refuses a `data` that the working directory has,
    wherever the model goes: there lies a user's own model.onnx.data, as PyTorch writes it.
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    for tensor in initializers(model.graph):
        # Measured as onnx.save does, with the object's own 33 bytes: the files stay as they were.
        if tensor.HasField("raw_data") and sys.getsizeof(tensor.raw_data) >= LARGE:
            set_external_data(tensor, data)
    onnx.save(model, path)


def initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of a graph and of the bodies in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else []
            for body in (*bodies, *attribute.graphs):
                yield from initializers(body)
