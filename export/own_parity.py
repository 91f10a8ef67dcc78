"""The canonical graph against the user's file, both in ONNX Runtime without optimizations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import BundleError, ExportError
from ..runtime.sessions.onnxruntime import OnnxRuntimeSession, reference_session

Arrays = dict[str, NDArray[np.generic]]

# Relative to the RMS of the file's output. The same sums in another order stay below 1e-5; a
# weight that was transposed or renamed wrongly is off by orders more.
TOLERANCE = 1e-4
# Integer outputs: an arg-max may fall on the other side of a tie.
INTEGERS_DIFFER = 1e-3
# What unknown dimensions are tried with, the first axis apart.
SIZES = (8, 16, 32, 64, 128, 224, 256, 1, 2, 4)
BATCH = 2
SEEDS = (0, 1)


@dataclass(frozen=True, slots=True)
class OwnParity:
    """Largest difference of each float output relative to its RMS; share of unequal integers."""

    graph: str
    inputs: dict[str, tuple[int, ...]]
    max_difference: dict[str, float]
    integers_differ: dict[str, float]


def check_own_graph(path: Path, canonical: Path, model: ir.Model) -> OwnParity:
    """Run both on the same seeded inputs; `model` is the canonical graph with its shapes.

    Floats are standard normal, integers and booleans 0 and 1. Dimensions without a size get the
    first of `SIZES` that the file runs with.

    Raises:
        ExportError: a difference above the tolerance, or inputs that no size makes work.
    """
    original = open_original(path)
    feeds, wanted = first_that_runs(original, path, model)
    del original
    session = reference_session(canonical)
    floats: dict[str, float] = {}
    integers: dict[str, float] = {}
    for feed, expected in zip(feeds, wanted, strict=True):
        found = session.run(feed)
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating):
                floats[name] = max(floats.get(name, 0.0), relative(found[name], value))
            else:
                differ = float(np.mean(found[name] != value)) if value.size else 0.0
                integers[name] = max(integers.get(name, 0.0), differ)
    for measured, allowed in ((floats, TOLERANCE), (integers, INTEGERS_DIFFER)):
        for name, difference in measured.items():
            if not difference <= allowed:
                raise ExportError(
                    f"output {name} differs from the file's by {difference:.2e} "
                    f"(allowed {allowed:.0e})",
                    where=str(path),
                    do="report it with the output of `arvg-trt doctor`",
                )
    shapes = {name: tuple(array.shape) for name, array in feeds[0].items()}
    return OwnParity(canonical.stem, shapes, floats, integers)


def open_original(path: Path) -> OnnxRuntimeSession:
    try:
        return reference_session(path)
    except BundleError as error:
        raise ExportError(
            error.what, where=str(path), do="check the file with onnx.checker"
        ) from error


def first_that_runs(
    session: OnnxRuntimeSession, path: Path, model: ir.Model
) -> tuple[list[Arrays], list[Arrays]]:
    """Seeded inputs of the first size that the file takes, and its outputs."""
    problem: BundleError | None = None
    for size in SIZES:
        feeds = [seeded_inputs(model.graph, size, seed) for seed in SEEDS]
        try:
            return feeds, [session.run(feed) for feed in feeds]
        except BundleError as error:
            problem = problem or error
    assert problem is not None
    raise ExportError(
        f"ONNX Runtime runs the graph as given with none of the sizes tried: {problem.what}",
        where=str(path),
        do="give its inputs fixed dimensions that it works with",
    ) from problem


def seeded_inputs(graph: ir.Graph, size: int, seed: int) -> Arrays:
    """An array for every input; a dimension without a number has `size`, the first `BATCH`."""
    shapes = {}
    for value in graph.inputs:
        if value.shape is None or value.dtype is None:
            raise ExportError(f"input {value.name} has no type or rank", do="name both in the file")
        shapes[str(value.name)] = tuple(
            d if isinstance(d, int) else BATCH if k == 0 else size
            for k, d in enumerate(value.shape)
        )
    return seeded_arrays(graph, shapes, seed)


def seeded_arrays(graph: ir.Graph, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Arrays:
    """Inputs of these shapes: floats are standard normal, integers and booleans 0 and 1."""
    rng = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in graph.inputs:
        assert value.dtype is not None
        shape, kind = shapes[str(value.name)], value.dtype.numpy()
        if np.issubdtype(kind, np.floating):
            feeds[str(value.name)] = rng.standard_normal(shape).astype(kind)
        else:
            feeds[str(value.name)] = rng.integers(0, 2, shape).astype(kind)
    return feeds


def relative(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """max |a - b| / RMS(b) in float64; the RMS of an output of zeros counts as 1."""
    wide = expected.astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 1.0
    error = np.abs(found.astype(np.float64) - wide)
    return float(error.max(initial=0.0)) / (scale or 1.0)
