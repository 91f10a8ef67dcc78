"""Run instrumented graphs over saved samples, one batch in flight.

A graph's session is closed before the next one's opens; between them only those outputs are kept
that feed a later graph, such as a tokenizer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import BundleError, CalibrationError
from ...graph.edit import forget_constants
from ...graph.io import float_outputs, graph_bytes, input_names, load_graph
from ...runtime.sessions.open import open_session, reference_session
from ...runtime.sessions.session import Session
from ...samples.files import feeds_of, sample_batches, sample_files, sample_labels
from .reduce import ROW_KINDS, only_finite

Outputs = Mapping[str, NDArray[np.generic]]
Progress = Callable[[str, int, int], None]
ALL = slice(None)
# Weights of a graph of which sessions make copies in the layout that products are fastest with.
# Beside the file these cost as much memory again, 2 GB; without them a step of VAR takes 1.18 times
# as long.
COPIED = 2**29


def run_instrumented(
    export: Path,
    samples: Path,
    graphs: Sequence[str],
    *,
    batch_size: int,
    instrument: Callable[[str, ir.Graph], None],
    consume: Callable[[str, Outputs], None],
    progress: Progress,
    threads: int = 0,
    part: slice = ALL,
    observed: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Run `graphs` in turn over the samples; `consume(graph, outputs)` gets each batch.

    `instrument` adds output nodes to the graph it is given; nothing else leaves the session.
    `part` of the samples counts. Only the `observed` graphs (None: all) are instrumented and
    consumed; the others feed them. From the first batch on that has NaN or infinity inside a graph
    and none in its outputs, -infinity apart (rows of padding, masks), observers see 0 for them;
    returns those graphs.

    Raises:
        CalibrationError: a non-finite value in what a graph computes for a sample (named), an input
            that nothing feeds, or a sample that the graph does not take.
    """
    lenient: list[str] = []
    known = sample_labels(samples)
    # Only what the user named is counted as a sample: a generator saves several rows of each.
    noun = "samples" if known else "rows of samples"
    inputs = {graph: input_names(export / f"{graph}.onnx") for graph in graphs[1:]}
    carried: dict[str, dict[str, NDArray[np.generic]]] = {}
    for position, graph in enumerate(graphs):
        later = {name for g in graphs[position + 1 :] for name in inputs[g]}
        path, watched = export / f"{graph}.onnx", observed is None or graph in observed
        added = instrument if watched else as_it_is
        session = open_instrumented(path, graph, added, threads)
        files, done = sample_files(samples, graph)[part], 0
        ends = float_outputs(path)
        progress(f"{noun} through {graph}", done, len(files))  # a pass begins
        for names, arrays in sample_batches(files, batch_size, session.inputs):
            carried_values = carried.setdefault(names[0], {})
            feeds = feeds_of(graph, session.inputs, arrays, carried_values)
            called = [known.get(name, name) for name in names]
            try:
                outputs = session.run(feeds)
            except BundleError as error:
                raise CalibrationError(
                    error.what, where=samples_text(called), do=error.do
                ) from error
            if has_bad(outputs):
                if graph not in lenient and is_masked(outputs, ends, path, feeds):
                    lenient.append(graph)
                    session = open_instrumented(path, graph, added, threads, finite=True)
                    outputs = session.run(feeds)
                require_finite(outputs, called, graph, ends if graph in lenient else ())
            if watched:
                consume(graph, outputs)
            carried_values.update((k, v) for k, v in outputs.items() if k in later)
            done += len(names)
            progress(f"{noun} through {graph}", done, len(files))
        del session
    return tuple(lenient)


def as_it_is(name: str, graph: ir.Graph) -> None:
    """Add nothing to a graph."""


def is_masked(outputs: Outputs, ends: Sequence[str], path: Path, feeds: Outputs) -> bool:
    """Return whether bad values are by design: the float outputs have none but -infinity.

    Without float outputs there is nothing that could prove it. Outputs that the observed graph has
    no more are those of the graph at `path`.
    """
    if not ends:
        return False
    if not outputs.keys() >= set(ends):
        outputs = reference_session(path).run(feeds, ends)
    return all(is_below_infinity(outputs[name]) for name in ends)


def open_instrumented(
    path: Path,
    graph: str,
    instrument: Callable[[str, ir.Graph], None],
    threads: int = 0,
    *,
    finite: bool = False,
    mapped: bool = False,
) -> Session:
    """Open a graph with observers, which see 0 for NaN and infinity where `finite`.

    `mapped` leaves its weights in their file; so does one of more than `COPIED`.
    """
    data, weights = instrumented(path, graph, instrument, finite=finite)
    return open_session(
        path,
        optimized=True,
        lean=True,
        mapped=mapped or weights > COPIED,
        graph=data,
        threads=threads,
        fused=False,
    )


def instrumented(
    path: Path, graph: str, instrument: Callable[[str, ir.Graph], None], *, finite: bool
) -> tuple[bytes, int]:
    """Return the bytes of a changed graph, and how many weights it had before."""
    model = load_graph(path)
    held = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.size for tensor in held if tensor is not None)
    if finite:
        only_finite(model.graph)
    instrument(graph, model.graph)
    data = graph_bytes(model)
    forget_constants(model.graph)
    return data, weights


def require_finite(
    outputs: Outputs, names: Sequence[str], graph: str, masked: Sequence[str] = ()
) -> None:
    """Raise CalibrationError for NaN or infinity in any output.

    Outputs in `masked` may have -infinity. `names` are what the user calls the samples of the
    batch.
    """
    # The inputs of observers come first, in graph order, so that the first bad tensor is named.
    for tensor, values in sorted(outputs.items(), key=lambda item: ":" not in item[0]):
        if is_empty(outputs, tensor):
            continue  # its minimum is infinite
        if tensor in masked and is_below_infinity(values):
            continue
        if is_bad(values):
            raise CalibrationError(
                f"{graph} makes NaN or infinity at {tensor.rpartition(':')[0] or tensor}",
                where=bad_sample({tensor: values, **outputs}, names),
                do="check the checkpoint, then remove the sample if it is to blame",
            )


def has_bad(outputs: Outputs) -> bool:
    """Return whether any float output has NaN or infinity, other than the range of no elements."""
    return any(is_bad(values) and not is_empty(outputs, name) for name, values in outputs.items())


def is_bad(values: NDArray[np.generic]) -> bool:
    # A graph has some 550 observers: `np.issubdtype` took twice as long as looking at the values.
    return values.dtype.kind == "f" and not np.isfinite(values).all()


def is_below_infinity(values: NDArray[Any]) -> bool:
    """Return whether no value is NaN or +infinity."""
    return bool(np.all(values < np.inf))


def bad_sample(outputs: Outputs, names: Sequence[str]) -> str:
    """Return the name of the sample that the first bad row belongs to, or of the whole batch."""
    for name, values in outputs.items():
        alone = values.ndim > 0 and is_by_sample(name, len(values), len(names))
        if alone and is_bad(values) and not is_empty(outputs, name):
            bad = ~np.isfinite(values.reshape(len(names), -1)).all(axis=1)
            return names[int(np.flatnonzero(bad)[0])]
    return samples_text(names)


def samples_text(names: Sequence[str]) -> str:
    """Return the name of a sample, or of the first and the last of several."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def is_by_sample(output: str, rows: int, samples: int) -> bool:
    """Return whether each row belongs to one sample, instead of summing over the batch."""
    several = output.rpartition(":")[2] in ROW_KINDS and rows % samples == 0
    return several or rows == samples


def is_empty(outputs: Outputs, name: str) -> bool:
    """Return whether an observed tensor has no elements, such as no known tokens yet."""
    shape = outputs.get(f"{name.rpartition(':')[0]}:shape")
    return shape is not None and 0 in shape
