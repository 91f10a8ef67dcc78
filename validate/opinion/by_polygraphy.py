"""Run graphs by Polygraphy's runner of ONNX Runtime, and compare by its own comparator.

A figure of accuracy is only as good as the two sessions that it was measured in: of FP32 and of the
Q/DQ graphs. Engines are left out: they round at other places than their graph does in a session
without optimizations, and some tokens differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .compare import Arrays, finite, largest_errors
from .facts import ABSOLUTE, RELATIVE, SecondOpinion

LIMIT = f"{RELATIVE:g} of the value + {ABSOLUTE:g}, integers equal"


def run_by_polygraphy(path: Path, feeds: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Return the outputs of a graph in Polygraphy's runner, a run a feed."""
    iterations = _run(path, feeds)[0][1]
    return [{name: np.asarray(value) for name, value in run.items()} for run in iterations]


def compared(
    candidate: str, path: Path, feeds: Sequence[Arrays], ours: Sequence[Arrays]
) -> tuple[SecondOpinion, list[dict[str, Any]]]:
    """Run a graph by Polygraphy and let its comparator judge `ours`; returns its outputs too."""
    from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc

    theirs = _run(path, feeds)
    given = [{name: np.asarray(value) for name, value in run.items()} for run in theirs[0][1]]
    own = [IterationResult(outputs=dict(run), runner_name="arvg-trt") for run in ours]
    exact = {name: np.issubdtype(value.dtype, np.integer) for name, value in ours[0].items()}
    rule = SimpleCompareFunc(
        rtol={name: 0.0 if equal else RELATIVE for name, equal in exact.items()},
        atol={name: 0.0 if equal else ABSOLUTE for name, equal in exact.items()},
    )
    # It divides integers' errors by their values, of which token 0 is one.
    with _quiet(), np.errstate(divide="ignore", invalid="ignore"):
        both = RunResults([("arvg-trt", own), *theirs])
        agrees = bool(Comparator.compare_accuracy(both, compare_func=rule))
    largest, relative, equal = largest_errors(ours, given)
    floats = not all(exact.values())
    opinion = SecondOpinion(
        candidate=candidate,
        graph=path.stem,
        outputs=len(ours[0]),
        max_error=finite(largest),
        # NaN on both sides would be called equal by some rules, and is no agreement on a value.
        agrees=agrees and bool(np.isfinite(largest)),
        by="polygraphy",
        samples=len(ours),
        relative_error=finite(relative) if floats else None,
        equal=equal if any(exact.values()) else None,
        limit=LIMIT,
    )
    return opinion, given


def _run(path: Path, feeds: Sequence[Arrays]) -> Any:
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator

    # Optimized by default, ONNX Runtime rounds the inputs of products with INT8 weights alone: 0.04
    # instead of 0 on a linear of 64 channels.
    plain = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    load = SessionFromOnnx(str(path), graph_optimization_level=plain)
    with _quiet():
        given = [dict(each) for each in feeds]
        return Comparator.run([OnnxrtRunner(load, name="polygraphy")], data_loader=given)


def _quiet() -> Any:
    from polygraphy.logger import G_LOGGER

    G_LOGGER.colors = False  # else it warns of a package that it would colour its lines with
    return G_LOGGER.verbosity(G_LOGGER.CRITICAL)
