"""Measure the engine of a quantization beside its Q/DQ graphs, which a diagnosis is of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ...runtime.sessions.open import fast_session
from .diagnosis import QuantizedGraph, mean
from .whole import measure_raised, open_targets


def engine_noise(folder: Path, graphs: Mapping[str, QuantizedGraph]) -> float | None:
    """Return the relative noise of ONNX Runtime's engine on the runs that raising is measured on.

    None where it lacks a graph, or an output at which the error is measured: some are inside.
    """
    found = []
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        if not path.is_file():
            return None
        reference, targets = open_targets(graph.fp32_path, graph.sites, graph.threads)
        engine = fast_session(path, graph.threads)
        if not set(targets.names) <= set(engine.outputs):
            return None
        fed = partial(graph.fed, graph.feeds.halves(name)[1])
        found.append(measure_raised((reference, targets), engine, fed))
    return mean(found)
