"""Open sessions of a graph that also return the outputs of its sites."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.observers.reduce import values_by_name
from ...graph.io import graph_bytes, load_graph
from ...graph.sites import Site, by_input
from ...numerics.scheme import Plan
from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from ...workspace.files import open_tensors

Array = NDArray[Any]


def open_with_outputs(path: Path, tensors: Sequence[str], threads: int = 0) -> Session:
    """Open the reference session of a graph, with tensors inside it as outputs too."""
    model = load_graph(path)
    values = values_by_name(model.graph)
    for name in tensors:
        value = values[name]
        if not value.is_graph_output():
            value.dtype = ir.DataType.FLOAT
            model.graph.outputs.append(value)
    return open_session(path, optimized=False, graph=graph_bytes(model), threads=threads)


def compared_sites(sites: Sequence[Site], plan: Plan) -> list[Site]:
    """Return the linears that the method quantizes, and others that the plan does."""
    planned = {entry.name for entry in plan.sites if entry.weight is not None}
    return [s for s in sites if s.weight and (s.excluded is None or s.name in planned)]


def site_outputs(sites: Sequence[Site], outputs: Collection[str]) -> dict[str, str]:
    """Return each site's output tensor, in graph order, without those in `outputs`."""
    return {s.name: s.output for s in sites if s.output not in outputs}


def undo_folds(path: Path, sites: Sequence[Site]) -> dict[str, UndoFold]:
    """Return, by linear, what undoes the scales that a Q/DQ graph folded into its output.

    A site's x / s - p may be computed by the linear in front: with s and p of `weights.safetensors`
    beside the graph, (y + p) s is that linear's FP32 output.
    """
    nodes = {node.name for node in load_graph(path).graph}
    do = "run `arvg-trt quantize` again"
    with open_tensors(path.parent / "weights.safetensors", do=do) as file:
        tables = {key: file.get_tensor(key) for key in list(file.keys())}
    folded: dict[str, list[FoldedPart]] = {}
    for first, *_ in by_input(sites).values():
        fold, scale = first.producer_fold, tables.get(f"{first.name}.smoothing")
        if scale is None and f"{first.name}.center" in tables:
            scale = np.ones_like(tables[f"{first.name}.center"])
        # Where a node of its own scales the input, the linear in front is as it was.
        if fold is None or scale is None or f"{first.name}/input_scale" in nodes:
            continue
        shift = np.zeros_like(scale)
        if f"{first.name}/input_shift" not in nodes:
            shift = tables.get(f"{first.name}.center", shift)
        for producer in sites:
            starts = [p.start for p in fold.divide if p.initializer == producer.weight]
            moved = {p.start for p in fold.subtract if p.initializer == producer.bias}
            folded.setdefault(producer.name, []).extend(
                FoldedPart(at, scale, shift if at in moved else np.zeros_like(shift))
                for at in starts
            )
    return {name: UndoFold(tuple(parts)) for name, parts in folded.items() if parts}


@dataclass(frozen=True, slots=True)
class FoldedPart:
    """Hold channels from `start` on that contain y / scale - shift; both [C]."""

    start: int
    scale: Array
    shift: Array


@dataclass(frozen=True, slots=True)
class UndoFold:
    """Undo folds in the last axis of a linear's output."""

    parts: tuple[FoldedPart, ...]

    def __call__(self, value: Array) -> Array:
        whole = value.astype(np.float64)
        for part in self.parts:
            channels = slice(part.start, part.start + len(part.scale))
            whole[..., channels] = (whole[..., channels] + part.shift) * part.scale
        return whole
