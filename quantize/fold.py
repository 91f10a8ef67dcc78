"""Where a channel's scale and shift of a site's input go for free: into what makes the input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.observers.reduce import Floats, constant, initializer_array
from ..graph.sites import FoldPart, Site

# Norms with a scale and a bias a channel as their second and third input.
NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
)


def folds_scale(site: Site) -> bool:
    """Whether something in front of `site` takes a scale a channel."""
    return site.fold is not None or site.producer_fold is not None


def folds_shift(site: Site) -> bool:
    """Whether it takes a shift a channel too; a weight without a bias takes none."""
    return site.fold is not None or bool(site.producer_fold and site.producer_fold.subtract)


def holds_producer(graph: ir.Graph, site: Site) -> bool:
    """Whether every initializer of the site's producer fold is in `graph`."""
    fold = site.producer_fold
    if fold is None:
        return False
    return all(part.initializer in graph.initializers for part in (*fold.divide, *fold.subtract))


def fold_into_producer(graph: ir.Graph, site: Site, smoothing: Floats, offset: Floats) -> None:
    """Make the site's input x / smoothing - offset, by its producer's initializers alone.

    Both [C]; `offset` is only subtracted where the producer takes a shift. Call it once for the
    sites that share an input, and before the producer's own weight is quantized.
    """
    assert site.producer_fold is not None
    for part in site.producer_fold.divide:
        change(graph, part, np.divide, smoothing)
    for part in site.producer_fold.subtract:
        change(graph, part, np.subtract, offset)


def fold_into_norm(
    graph: ir.Graph,
    node: ir.Node,
    smoothing: NDArray[np.floating],
    offset: NDArray[np.floating] | np.float32,
) -> None:
    """Make what the norm in front of `node` gives x / smoothing - offset, [C] both (or a scalar).

    New initializers are made: the exporter shares equal-valued ones between norms.
    """
    norm = norm_behind(node)
    for index, name, by in ((1, "scale", np.float32(0)), (2, "bias", offset)):
        value = norm.inputs[index]
        assert value is not None
        wide = initializer_array(value).astype(np.float64)
        folded = wide / smoothing.astype(np.float64) - np.asarray(by, np.float64)
        label = f"{norm.name}.folded_{name}"
        norm.replace_input_with(index, constant(graph, label, folded.astype(np.float32)))


def norm_behind(node: ir.Node) -> ir.Node:
    """The norm whose output reaches `node` through its Q/DQ chain."""
    value = node.inputs[0]
    while value is not None:
        producer = value.producer()
        assert producer is not None
        if producer.op_type in NORMS:
            return producer
        value = producer.inputs[0]
    raise AssertionError(f"{node.name} has a fold but no norm in front")


def change(graph: ir.Graph, part: FoldPart, operation: np.ufunc, by: NDArray[np.floating]) -> None:
    """Divide a part of an initializer by `by` [C], or subtract it, in float64."""
    value = graph.initializers[part.initializer]
    wide = initializer_array(value).astype(np.float64)
    where = [slice(None)] * wide.ndim
    where[part.axis] = slice(part.start, part.start + len(by))
    shaped = by.astype(np.float64).reshape([-1 if k == part.axis else 1 for k in range(wide.ndim)])
    wide[tuple(where)] = operation(wide[tuple(where)], shaped)
    value.const_value = ir.tensor(wide.astype(np.float32), name=part.initializer)
