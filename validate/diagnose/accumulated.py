"""Measure what each site gives with all sites before it quantized, against FP32, in graph order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...calibrate.observers.reduce import values_by_name
from ...errors import AccuracyError
from ...graph.builder import add_node
from ...graph.io import graph_bytes, load_graph
from ...graph.linears import LINEAR_OPS
from ...graph.sites import Site
from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from ...samples.files import Array
from ..measure.tokenizer_sites import parts
from .alignment import AlignedGraph, OutputScale
from .noise import BucketedNoise, buckets_of, numbers_of

Feeds = Callable[[], Iterable[dict[str, Array]]]


def measure_accumulated(
    fp32: Path,
    quantized: Path,
    align: Callable[[], AlignedGraph],
    sites: Sequence[Site],
    feeds: Feeds,
    tick: Callable[[int, int], None],
    *,
    most: int,
    sides: Sequence[int] = (),
    threads: int = 0,
) -> dict[str, BucketedNoise]:
    """Return the error of each site's output in FP32's units.

    `align` makes the FP32 graph with the folds of the Q/DQ graph. Outputs of `most` bytes leave the
    two sessions at once; `tick` is called with the sites done.

    Raises:
        AccuracyError: FP32 itself gives NaN or infinity at a site.
    """
    aligned = align()
    tensors = {site.name: aligned.ends[site.name].output for site in sites}
    first = next(iter(feeds()))
    shapes = output_shapes(fp32, align(), list(tensors.values()), first, threads)
    sizes = {name: 4 * math.prod(shapes[tensor]) for name, tensor in tensors.items()}
    found: dict[str, BucketedNoise] = {}
    for part in parts([site.name for site in sites], sizes, most // 2):
        chosen = [site for site in sites if site.name in part]
        names = {str(s.position_input) for s in chosen if s.position_input} - {*first}
        wanted = opened(fp32, aligned.model, [*(tensors[n] for n in part), *names], threads)
        actual = opened(quantized, load_graph(quantized), [tensors[n] for n in part], threads)
        for site in chosen:
            shape = shapes[tensors[site.name]]
            count = shape[1] if len(shape) == 3 else None
            found[site.name] = BucketedNoise(buckets_of(site, count, sides))
        for fed in feeds():
            exact, given = wanted.run(fed), actual.run(fed)
            for site in chosen:
                add_site(
                    found[site.name],
                    site,
                    exact[tensors[site.name]],
                    given[tensors[site.name]],
                    {**fed, **exact},
                    aligned.scaled.get(site.name),
                )
        tick(len(found), len(sites))
    return found


def add_site(
    total: BucketedNoise,
    site: Site,
    exact: Array,
    given: Array,
    values: Mapping[str, Array],
    scaled: OutputScale | None,
) -> None:
    """Add the squares of one run's output, reduced to its rows."""
    wide, other = (in_fp32_units(value, site, scaled) for value in (exact, given))
    if not np.isfinite(wide).all() and site.weight is not None:
        raise AccuracyError(
            f"FP32 itself gives NaN or infinity at {site.name}", do="look at the samples"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        signal, noise = (rows(np.square(each)) for each in (wide, other - wide))
    total.add(signal, noise, numbers_of(site, values, signal.shape))


def in_fp32_units(value: Array, site: Site, scaled: OutputScale | None) -> NDArray[np.float64]:
    """Undo what folds do to the output of a site."""
    wide = value.astype(np.float64)
    if scaled is None:
        return wide
    shape = (-1,) if site.op in LINEAR_OPS else (-1, 1, 1)
    whole: NDArray[np.float64] = (wide + scaled.shift.reshape(shape)) * scaled.scale.reshape(shape)
    return whole


def rows(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums over all but the first two axes, of rows [N, C] over the channels."""
    kept = 2 if squares.ndim > 2 else 1
    found: NDArray[np.float64] = squares.sum(axis=tuple(range(kept, squares.ndim)))
    return found


def output_shapes(
    path: Path,
    aligned: AlignedGraph,
    tensors: Sequence[str],
    fed: Mapping[str, Array],
    threads: int,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors in a run, without keeping one of them; changes the graph."""
    model = aligned.model
    values = values_by_name(model.graph)
    model.graph.outputs.clear()
    for name in dict.fromkeys(tensors):
        model.graph.outputs.append(add_node(model.graph, "Shape", [values[name]], f"{name}/shape"))
    found = session_of(path, model, threads).run(fed)
    return {name: tuple(int(n) for n in found[f"{name}/shape"]) for name in tensors}


def opened(path: Path, model: ir.Model, tensors: Sequence[str], threads: int) -> Session:
    """Open a graph with tensors inside it as its only outputs."""
    values = values_by_name(model.graph)
    model.graph.outputs.clear()
    for name in dict.fromkeys(tensors):
        value = values[name]
        if value.dtype is None:
            value.dtype = ir.DataType.FLOAT
        model.graph.outputs.append(value)
    return session_of(path, model, threads)


def session_of(path: Path, model: ir.Model, threads: int) -> Session:
    data = graph_bytes(model)
    return open_session(path, optimized=False, lean=True, mapped=True, graph=data, threads=threads)
