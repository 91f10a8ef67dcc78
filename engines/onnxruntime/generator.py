"""Build the ONNX Runtime engine of a generator: all graphs that generate, over one weight file.

Each graph is checked against the Q/DQ graph that it was made from: the teacher-forced one on
calibration samples, both beside FP32, those of the loop on what the engine itself feeds them while
it makes a picture, and those that were calibrated along a trajectory on runs of it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BuildError
from ...graph.io import read_graph
from ...graph.weight_file import SharedWeights
from ...numerics.noise import decibels
from ...runtime.families import SPEC_FILE
from ...runtime.generator import OTHER_GRAPHS, TEACHER_FORCED, Generator
from ...runtime.sessions.open import (
    SLOW_OPTIMIZERS,
    expands_weights,
    fast_session,
    open_session,
    reference_session,
)
from ...runtime.sessions.session import (
    Array,
    DeviceValue,
    OpenSession,
    Session,
    SessionObserver,
)
from ...runtime.spec import DECODER
from ...samples.files import DECODER_SAMPLES, graph_of, load_sample, sample_files
from ..facts import EngineRow
from .build import (
    CHECKING,
    REWRITING,
    Progress,
    build_engine,
    engine_row,
    output_ranges,
    rewrite_graph,
)
from .check import CHECK_SAMPLES, TITLE, check_engine
from .weights import expand_weights, has_fixed_shapes, mark_expanded, most_rows

# Runs of a graph that are compared: of a RAR or PAR the first tokens, of a VAR all scales, of a
# MAR the first passes and diffusions; of recorded ones as many.
CHECKED_RUNS = 12
# A wrong rewrite is off by half the signal. A right one rounds a value in ten thousand to the next
# step, since it divides in another order.
LEAST_DB = 25.0


def build_generator_engine(
    source: Path, export: Path, samples: Path, statistics: Path, output: Path, *, progress: Progress
) -> list[EngineRow]:
    """Rewrite the graphs of `source` into `output`, with `generator.json`, and check them.

    A row's bytes are what its graph adds to the folder: shared weights count once. A quantized
    image decoder is built as an image tokenizer's is, and shares nothing.

    Raises:
        BuildError: the engine is further from its Q/DQ graphs than rounding explains.
    """
    found = {path.stem for path in source.glob("*.onnx")}
    # The graph of all positions does not generate: it is what accuracy is measured with.
    graphs = sorted(found - set(OTHER_GRAPHS) | found & {TEACHER_FORCED})
    ranges, decoded = output_ranges(statistics), samples.with_name(DECODER_SAMPLES)
    apart = [DECODER] if is_quantized(source / f"{DECODER}.onnx") and decoded.is_dir() else []
    graphs = [graph for graph in graphs if graph not in apart]
    rows, steps = [], len(graphs) + 2
    fixed, most = has_fixed_shapes(export), most_rows(export)
    if apart:
        rows += build_engine(source, export, decoded, statistics, output, apart, progress=progress)
    with SharedWeights(output) as weights:
        for k, graph in enumerate(graphs):
            progress(REWRITING, k, steps)
            start, before = time.perf_counter(), folder_bytes(output)
            model = read_graph(source / f"{graph}.onnx")
            rewritten = rewrite_graph(model, ranges)
            if fixed:
                expand_weights(model)
            else:
                mark_expanded(model, most.get(graph))
            weights.write(model, graph)
            size = folder_bytes(output) - before
            rows.append(engine_row(graph, rewritten, size, time.perf_counter() - start))
    shutil.copyfile(source / SPEC_FILE, output / SPEC_FILE)
    progress(CHECKING, steps - 2, steps)
    if TEACHER_FORCED in graphs:
        check_engine(
            source, export, output, sample_files(samples)[:CHECK_SAMPLES], [TEACHER_FORCED]
        )
    check_runs(source, output, samples, graphs)
    progress(CHECKING, steps - 1, steps)
    check_loop(source, output, apart=apart)
    progress(CHECKING, steps, steps)
    return rows


def is_quantized(path: Path) -> bool:
    """Return whether a graph has rounded weights or inputs."""
    return any(node.op_type == "DequantizeLinear" for node in read_graph(path).graph)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def checked_session(path: Path, threads: int) -> Session:
    """Open a graph of the engine as it is checked: optimized, but for what slows it down."""
    fused = not expands_weights(path.read_bytes())
    return open_session(
        path, optimized=True, threads=threads, disabled=SLOW_OPTIMIZERS, fused=fused
    )


def check_loop(
    source: Path,
    engine: Path,
    *,
    session: OpenSession = checked_session,
    title: str = TITLE,
    apart: Collection[str] = (),
) -> None:
    """Generate an image with the engine, and run the Q/DQ graphs beside it on the same feeds.

    But for graphs that are `apart`: those round outputs too, and were judged by what the Q/DQ graph
    loses.

    Raises:
        BuildError: an output of a graph that differs by more than `LEAST_DB` allows.
    """
    opened: list[ComparedSession] = []

    def compared_session(path: Path, threads: int) -> Session:
        if path.stem in apart:
            return fast_session(path, threads)
        opened.append(ComparedSession(session(path, threads), source / path.name, threads))
        return opened[-1]

    Generator.open(engine, session=compared_session, verify=False).generate([0])  # no manifest yet
    for compared in opened:
        require_close(compared, title)


def check_runs(
    source: Path,
    engine: Path,
    samples: Path,
    graphs: Sequence[str],
    *,
    session: OpenSession = checked_session,
    title: str = TITLE,
) -> None:
    """Compare graphs on some of the runs that calibration recorded of them.

    Raises:
        BuildError: an output of a graph that differs by more than `LEAST_DB` allows.
    """
    for graph in graphs:
        files = [path for path in sample_files(samples) if graph_of(path) == graph]
        if not files:
            continue
        opened = session(engine / f"{graph}.onnx", 0)
        compared = ComparedSession(opened, source / f"{graph}.onnx", threads=0)
        # Any stride could keep step with the times of the runs.
        for k in np.random.default_rng(0).permutation(len(files))[:CHECKED_RUNS]:
            compared.run(load_sample(files[k], compared.inputs))
        require_close(compared, title)


def require_close(compared: ComparedSession, title: str = TITLE) -> None:
    """Raise BuildError for an output that differs by more than `LEAST_DB` allows."""
    for name, db in compared.decibels().items():
        if not db >= LEAST_DB:
            raise BuildError(
                f"the {title} {compared.path.stem} is {db:.1f} dB from its Q/DQ graph at "
                f"{name}, {LEAST_DB:g} is the least",
                where=str(compared.path),
                do="quantize again with --exclude for its sites that lose most (`arvg-trt "
                "diagnose` ranks them)",
            )


class ComparedSession(SessionObserver):
    """Run an engine's graph, and compare its first runs with the graph it was made from."""

    def __init__(self, session: Session, source: Path, threads: int) -> None:
        super().__init__(session)
        self._source = reference_session(source, threads)
        self._runs = 0
        # Sums of squares of each output of the source and of the difference.
        self._sums: dict[str, NDArray[np.float64]] = {}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        found = super().run(feeds, outputs)
        self._compare(feeds, found)
        return found

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds, host)
        self._compare(feeds, found)
        return found

    def _compare(
        self,
        feeds: Mapping[str, Array | DeviceValue],
        outputs: Mapping[str, Array] | Mapping[str, DeviceValue],
    ) -> None:
        self._runs += 1
        if self._runs > CHECKED_RUNS:
            return
        arrays = {name: on_host(value) for name, value in feeds.items()}
        for name, value in self._source.run(arrays, list(outputs)).items():
            wanted = value.astype(np.float64)
            noise = wanted - on_host(outputs[name]).astype(np.float64)
            squares = [np.square(wanted).sum(), np.square(noise).sum()]
            self._sums[name] = self._sums.get(name, 0) + np.array(squares)

    def decibels(self) -> dict[str, float]:
        """Return the SQNR of each output over the compared runs; infinite if all are equal."""
        return {
            name: decibels(float(signal), float(noise))
            for name, (signal, noise) in self._sums.items()
        }


def on_host(value: Array | DeviceValue) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()
