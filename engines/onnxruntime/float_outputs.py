"""Choose which outputs of an ONNX Runtime engine stay float, because rounding costs too much.

Only the rounding of convolutions' outputs is not in the Q/DQ graph. What it costs a site shows in
the site's own output: the error of its uint8 grid against the value that the Q/DQ graph has there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...graph.io import read_graph
from ...runtime.sessions.open import open_session
from .integers import UINT8_MAX, Ranges, output_qparams

Array = NDArray[np.generic]
Floats = NDArray[np.floating]
AT_ONCE = 8  # outputs of one run: of a decoder at 256x256 pixels each has up to 64 MB


def worst_first(
    source: Path, sites: Sequence[str], ranges: Ranges, feeds: Sequence[Mapping[str, Array]]
) -> list[str]:
    """Return the sites of a Q/DQ graph with rounded outputs, those that lose most first.

    `source` is the graph's file, `ranges` are those of the sites' outputs, `feeds` the graph's.
    """
    losses = dict.fromkeys(sites, 0.0)
    for names, values in outputs_of(source, tuple(losses), feeds):
        for name in names:
            losses[name] = max(losses[name], rounding_loss(values[name], *ranges[name]))
    return sorted(losses, key=lambda name: -losses[name])


def rounding_loss(value: Floats, low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """Return the squared error of a value [N, O, ...] on its uint8 grid, over its squares."""
    across = (1, -1, *(1,) * (value.ndim - 2))
    scale, zero = (each.astype(np.float64).reshape(across) for each in output_qparams(low, high))
    wide = value.astype(np.float64)
    q = np.clip(np.rint(wide / scale) + zero, 0, UINT8_MAX)
    signal = float(np.square(wide).sum())
    loss = float(np.square((q - zero) * scale - wide).sum()) / max(signal, 1e-300)
    return loss if loss < math.inf else math.inf  # NaN is the worst loss


def outputs_of(
    source: Path, nodes: Sequence[str], feeds: Sequence[Mapping[str, Array]]
) -> Iterator[tuple[tuple[str, ...], dict[str, Floats]]]:
    """Yield the outputs of a few nodes at a time, by node name, in the graph's own arithmetic."""
    for start in range(0, len(nodes), AT_ONCE):
        batch = tuple(nodes[start : start + AT_ONCE])
        model = read_graph(source)
        made = {node.name: node.outputs[0] for node in model.graph if node.name in batch}
        known = {value.name for value in model.graph.outputs}
        for value in made.values():
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            if value.name not in known:
                model.graph.outputs.append(value)
        session = open_session(
            source, optimized=False, graph=ir.to_proto(model).SerializeToString()
        )
        for each in feeds:
            names = [str(value.name) for value in made.values()]
            found = session.run(each, names)
            values = {str(node): cast(Floats, found[str(v.name)]) for node, v in made.items()}
            yield batch, values
