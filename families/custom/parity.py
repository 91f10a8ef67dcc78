"""Compare the canonical graph with the user's file, both in ONNX Runtime without optimizations.

Weights stay in their file, so that a comparison takes no copy of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import ArvgError, BundleError, ExportError
from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from .constants import WIDENED

Arrays = dict[str, NDArray[np.generic]]

# Relative to the RMS of the file's output. The same sums in another order stay below 1e-5; a
# weight that was transposed or renamed wrongly is off by orders more.
TOLERANCE = 1e-4
# For a float16 file, whose sums are rounded to 11 bits at every node: 5e-4 a node, and a network
# of a hundred nodes stays below this.
HALF_TOLERANCE = 2e-2
# Integer outputs: an arg-max may fall on the other side of a tie.
INTEGERS_DIFFER = 1e-3
# Sizes that are tried for unknown dimensions other than the first.
SIZES = (8, 16, 32, 64, 128, 224, 256, 1, 2, 4)
BATCH = 2
SEEDS = (0, 1)


@dataclass(frozen=True, slots=True)
class CustomParity:
    """Hold the largest relative difference of float outputs, and the share of unequal integers.

    Differences are relative to each output's RMS. `tolerance` is what was allowed of floats.
    """

    graph: str
    tolerance: float
    inputs: dict[str, tuple[int, ...]]
    max_difference: dict[str, float]
    integers_differ: dict[str, float]


def check_custom_graph(path: Path, canonical: Path, model: ir.Model) -> CustomParity:
    """Run both graphs on the same seeded inputs; `model` is the canonical one with shapes.

    Floats are standard normal, integers and booleans 0 and 1. Dimensions without a size get the
    first of `SIZES` that the file runs with. Where the file gives infinity or NaN, as masks do, the
    canonical graph has to give the same, and the rest is compared.

    Raises:
        ExportError: a difference above the tolerance, or inputs that no size makes work.
    """
    original = open_original(path)
    feeds, wanted = first_that_runs(original, path, model)
    del original
    session = open_session(canonical, optimized=False, lean=True, mapped=True)
    allowed_floats = HALF_TOLERANCE if model.meta.get(WIDENED) else TOLERANCE
    floats: dict[str, float] = {}
    integers: dict[str, float] = {}
    require_finite(wanted, path)
    for feed, expected in zip(feeds, wanted, strict=True):
        outputs = session.run(feed)
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating):
                floats[name] = max(floats.get(name, 0.0), relative(outputs[name], value))
            else:
                differ = float(np.mean(outputs[name] != value)) if value.size else 0.0
                integers[name] = max(integers.get(name, 0.0), differ)
    for measured, allowed in ((floats, allowed_floats), (integers, INTEGERS_DIFFER)):
        for name, difference in measured.items():
            if not difference <= allowed:
                raise ExportError(
                    f"output {name} differs from the file's by {difference:.2e} "
                    f"(allowed {allowed:.0e})",
                    where=str(path),
                    do="report it with the output of `arvg-trt doctor`",
                )
    shapes = {name: tuple(array.shape) for name, array in feeds[0].items()}
    return CustomParity(canonical.stem, allowed_floats, shapes, floats, integers)


def require_finite(outputs: Sequence[Arrays], path: Path) -> None:
    """Raise ExportError for an output without finite values: nothing could be compared."""
    for name in outputs[0]:
        arrays = [each[name] for each in outputs]
        if not np.issubdtype(arrays[0].dtype, np.floating) or not any(a.size for a in arrays):
            continue
        if not any(np.isfinite(array).any() for array in arrays):
            raise ExportError(
                f"output {name} is nowhere finite on standard normal inputs, so that the graph "
                "cannot be compared with the file",
                where=str(path),
                do="leave the output out of the graph, or check what makes it",
            )


def learn_ranks(path: Path, canonical: Path, model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Give `values` of the canonical graph the ranks that they have when it runs.

    ONNX infers none behind a Loop. Sizes stay unknown.
    """
    feeds, _ = first_that_runs(open_original(path), path, model)
    observed = ir.load(canonical)
    names = {str(value.name) for value in values}
    for node in observed.graph:
        for value in node.outputs:
            if value.name in names and not value.is_graph_output():
                value.dtype = value.dtype or ir.DataType.FLOAT
                observed.graph.outputs.append(value)
    data = bytes(ir.to_proto(observed).SerializeToString())
    session = open_session(canonical, optimized=False, graph=data)
    found = session.run(feeds[0], [str(value.name) for value in values])
    for value in values:
        value.shape = ir.Shape([None] * found[str(value.name)].ndim)
        value.dtype = ir.DataType.from_numpy(found[str(value.name)].dtype)


@contextlib.contextmanager
def blamed_on_file(path: Path) -> Iterator[None]:
    """Ask ONNX Runtime, where a pass over a graph fails, whether the file is a model at all.

    Raises:
        ExportError: it is not. Otherwise the error of the pass is raised.
    """
    try:
        yield
    except ArvgError:
        raise
    except Exception:
        open_original(path)
        raise


def open_original(path: Path) -> Session:
    """Open the file unchanged, except that sizes of 0 and below in its ends are dynamic."""
    try:
        graph = with_open_dimensions(path)
        # What constants compute in the file is as large as a weight: an arena takes twice of it.
        return open_session(path, optimized=False, lean=True, mapped=True, graph=graph)
    except BundleError as error:
        raise ExportError(
            error.what, where=str(path), do="check the file with onnx.checker"
        ) from error


def with_open_dimensions(path: Path) -> bytes | None:
    """Return the file's bytes without sizes of 0 and below, None if it has none."""
    proto = onnx.load(path, load_external_data=False)
    odd = False
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_value") and dimension.dim_value <= 0:
                odd = True
                dimension.Clear()
    if not odd:
        return None
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString())


def first_that_runs(
    session: Session, path: Path, model: ir.Model
) -> tuple[list[Arrays], list[Arrays]]:
    """Return seeded inputs of the first size that the file takes, and its outputs."""
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
    """Return an array for every input; dimensions without a number have `size`.

    The first dimension of each input is `BATCH` instead.
    """
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
    """Return inputs of these shapes: normal floats; integers and booleans of 0 and 1."""
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


def relative(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return max |a - b| / RMS(b) in float64 where b is finite.

    It is infinite where a and b are not finite in the same way. The RMS of an output of zeros
    counts as 1.
    """
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    if wide.shape != other.shape:
        return math.inf
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
        return math.inf
    wide, other = wide[finite], other[finite]
    scale = float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 1.0
    return float(np.abs(other - wide).max(initial=0.0)) / (scale or 1.0)
