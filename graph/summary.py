"""The key facts of an ONNX file, for `inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import onnx


class GraphSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Opsets by domain, inputs and outputs as text, and nodes by operator, the most first."""

    opset: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: dict[str, int]
    metadata: dict[str, str]


def summarize_graph(path: Path) -> GraphSummary:
    """Read a file without its weights.

    Raises:
        BundleError: it is no ONNX file.
    """
    from .io import read_proto

    model = read_proto(path, do="name a whole file")
    counts = Counter(node.op_type for node in model.graph.node)
    return GraphSummary(
        opset={o.domain or "ai.onnx": o.version for o in model.opset_import},
        inputs=tuple(value_text(v) for v in model.graph.input),
        outputs=tuple(value_text(v) for v in model.graph.output),
        nodes=dict(counts.most_common()),
        metadata={p.key: p.value for p in model.metadata_props},
    )


def value_text(value: onnx.ValueInfoProto) -> str:
    """Return the name and shape of an input or output: `image [n, 3, 256, 256]`."""
    dims = value.type.tensor_type.shape.dim
    return f"{value.name} [{', '.join(d.dim_param or str(d.dim_value) for d in dims)}]"
