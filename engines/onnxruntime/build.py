"""Build the ONNX Runtime engine: rewrite graphs, and check them against their Q/DQ graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import BuildError, CalibrationError
from ...graph.group_norm import ExpandGroupNormsPass
from ...graph.io import read_graph
from ...graph.passes import Sequential
from ...numerics.noise import masked_sqnr_db
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.sessions.session import OpenSession
from ...samples.files import TOKENIZER_GRAPHS, Arrays, GraphChain, load_sample, sample_files
from ...workspace.files import open_tensors
from ..facts import EXECUTED, EngineRow, SiteException
from .float_outputs import worst_first
from .integers import Ranges
from .matmul_integer import MatMulIntegerPass, match_input
from .qlinear_conv import QLinearConvPass
from .weights import mark_expanded

# Rounding outputs to uint8 adds about as much noise as the Q/DQ graph has.
WORST_LOSS_DB = 8.0
# Enough for a Q/DQ graph that is closer to FP32: float32 sums in another order differ by this.
EXACT_DB = 90.0
CHECK_SAMPLES = 2
REWRITING = "rewriting for ONNX Runtime"
CHECKING = "checking the engine"
TITLE = "ONNX Runtime"

Progress = Callable[[str, int, int], None]


def build_engine(
    source: Path,
    export: Path,
    samples: Path,
    statistics: Path,
    output: Path,
    graphs: Sequence[str] = TOKENIZER_GRAPHS,
    *,
    progress: Progress,
) -> list[EngineRow]:
    """Rewrite the graphs of `source` into `output` and check them on calibration samples.

    Where a graph is too far from its Q/DQ graph, the sites whose rounded outputs lose most compute
    in float: one, two, four and so on, until it is not. The row lists them.

    Raises:
        BuildError: the engine is further from its Q/DQ graph, also without rounded outputs.
    """
    rows = {}
    ranges = output_ranges(statistics)
    for k, graph in enumerate(graphs):
        progress(REWRITING, k, len(graphs) + 1)
        rows[graph] = write_graph(source, graph, output, ranges)
    progress(CHECKING, len(graphs), len(graphs) + 1)
    files = sample_files(samples)[:CHECK_SAMPLES]
    problems = differences(source, export, output, files, graphs)
    for graph in problems:
        feeds = graph_feeds(export, files, graphs, graph)
        rounded = rounded_sites(output / f"{graph}.onnx")
        order = worst_first(source / f"{graph}.onnx", rounded, ranges, feeds)
        rows[graph] = leave_in_float(
            order,
            problems[graph],
            partial(write_graph, source, graph, output, ranges),
            lambda: differences(source, export, output, files, graphs).get(graph),  # noqa: B023
        )
    progress(CHECKING, len(graphs) + 1, len(graphs) + 1)
    return [rows[graph] for graph in graphs]


def write_graph(
    source: Path, graph: str, output: Path, ranges: Ranges, left: Collection[str] = ()
) -> EngineRow:
    """Rewrite one graph, but for the sites that are `left` in float; returns its row."""
    start = time.perf_counter()
    model = read_graph(source / f"{graph}.onnx")
    rewritten = rewrite_graph(model, {name: r for name, r in ranges.items() if name not in left})
    mark_expanded(model, rows=None)
    path = output / f"{graph}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")))
    return engine_row(graph, rewritten, size, time.perf_counter() - start, left)


def rounded_sites(engine: Path) -> list[str]:
    """Return the sites whose outputs an engine's graph rounds, by the nodes made for them."""
    graph = read_graph(engine).graph
    return [str(n.name).rpartition("/")[0] for n in graph if n.op_type == "QLinearConv"]


def leave_in_float(
    order: Sequence[str],
    problem: BuildError,
    write: Callable[[Collection[str]], EngineRow],
    check: Callable[[], BuildError | None],
) -> EngineRow:
    """Write a graph with more and more of the sites `order` in float, until its check holds.

    Raises:
        BuildError: it does not even with all of them; the last problem.
    """
    count = 0
    while count < len(order):
        count = min(2 * count or 1, len(order))
        row = write(order[:count])
        found = check()
        if found is None:
            return row
        problem = found
    raise BuildError(
        f"{problem.what}, with the outputs of all convolutions in float as well",
        where=problem.where,
        do="report it with the output of `arvg-trt doctor`; the Q/DQ graphs run in its place",
    )


def graph_feeds(
    export: Path, samples: Sequence[Path], graphs: Sequence[str], graph: str
) -> list[Arrays]:
    """Return what the FP32 graphs feed one of them with, for each sample."""
    chain = GraphChain.open(export, graphs, session=reference_session)
    arrays = [load_sample(path) for path in samples]
    return [chain.feeds(graph, each, chain.run(each)) for each in arrays]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Name the products with quantized inputs, and those that now compute in integers.

    `weights` are the bits of weights that are stored as integers and computed with as floats.
    """

    planned: tuple[str, ...]
    done: tuple[str, ...]
    weights: tuple[int, ...]

    @property
    def precision(self) -> str:
        kinds = ["INT8"] * bool(self.done) + [f"W{bits}" for bits in self.weights]
        return "+".join(kinds) + " + FP32" if kinds else "FP32"


def rewrite_graph(model: ir.Model, ranges: Ranges) -> Rewritten:
    """Rewrite a graph in place into the forms that run fast on a CPU.

    `ranges` are those of convolutions' outputs.
    """
    products = [n for n in model.graph if n.op_type in ("Conv", "MatMul")]
    planned = [str(node.name) for node in products if match_input(node)]
    convolutions, linears = QLinearConvPass(ranges), MatMulIntegerPass()
    Sequential(convolutions, linears, ExpandGroupNormsPass())(model)
    done = convolutions.rewritten + linears.rewritten
    held = [n.inputs[0] for n in model.graph if n.op_type == "DequantizeLinear"]
    bits = {int(v.const_value.dtype.bitwidth) for v in held if v is not None and v.const_value}
    return Rewritten(tuple(planned), done, tuple(sorted(bits)))


NO_FORM = "its chain has no INT8 form"
IN_FLOAT = "in float: rounding its output moved the engine too far from its Q/DQ graph"


def engine_row(
    graph: str, rewritten: Rewritten, size: int, seconds: float, left: Collection[str] = ()
) -> EngineRow:
    return EngineRow(
        backend="onnxruntime",
        target="cpu",
        precision=rewritten.precision,
        graph=graph,
        bytes=size,
        build_seconds=seconds,
        int8_sites_planned=len(rewritten.planned),
        int8_sites_proved=len(rewritten.done),
        exceptions=tuple(
            SiteException(site=name, reason=IN_FLOAT if name in left else NO_FORM)
            for name in rewritten.planned
            if name not in rewritten.done
        ),
        status=EXECUTED,
    )


def output_ranges(statistics: Path) -> Ranges:
    """Return (low, high) per output channel of each site, from calibration.

    Raises:
        CalibrationError: the file is damaged, or a range has an end without the other.
    """
    suffix, do = ":output:low", "run `arvg-trt calibrate` again"
    with open_tensors(statistics, do=do, error=CalibrationError) as file:
        names = [key.removesuffix(suffix) for key in list(file.keys()) if key.endswith(suffix)]
        ranges = {
            name: (file.get_tensor(f"{name}{suffix}"), file.get_tensor(f"{name}:output:high"))
            for name in names
        }
    for name, (low, high) in ranges.items():
        if low.ndim != 1 or low.shape != high.shape or {low.dtype.kind, high.dtype.kind} != {"f"}:
            raise CalibrationError(
                f"the outputs of {name} have ranges {list(low.shape)} and {list(high.shape)}",
                where=str(statistics),
                do=do,
            )
    return ranges


def check_engine(
    source: Path,
    export: Path,
    engine: Path,
    samples: Sequence[Path],
    graphs: Sequence[str] = TOKENIZER_GRAPHS,
    *,
    session: OpenSession = fast_session,
    title: str = TITLE,
) -> None:
    """Compare the engine as executed with its Q/DQ graph, graph by graph.

    The difference may be as large as what the Q/DQ graph lost against FP32 and `WORST_LOSS_DB`
    more, however little that is.

    Raises:
        BuildError: an output that differs by more, or is not finite in the same places.
    """
    found = differences(source, export, engine, samples, graphs, session=session, title=title)
    for problem in found.values():
        raise problem


def run_given(
    chain: GraphChain, arrays: Sequence[Arrays], references: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """Return what each graph of a chain makes of samples and of what the FP32 graphs gave it."""
    return [chain.run(feeds, given=made) for feeds, made in zip(arrays, references, strict=True)]


def differences(
    source: Path,
    export: Path,
    engine: Path,
    samples: Sequence[Path],
    graphs: Sequence[str],
    *,
    session: OpenSession = fast_session,
    title: str = TITLE,
) -> dict[str, BuildError]:
    """Return, by graph, the error of the first output that `check_engine` refuses."""
    problems: dict[str, BuildError] = {}
    arrays = [load_sample(path) for path in samples]
    fp32 = GraphChain.open(export, graphs, session=reference_session)
    references = [fp32.run(feeds) for feeds in arrays]
    del fp32
    simulated, real = (
        run_given(GraphChain.open(folder, graphs, session=opened), arrays, references)
        for folder, opened in ((source, reference_session), (engine, session))
    )
    for name in [n for n, v in references[0].items() if np.issubdtype(v.dtype, np.floating)]:
        graph, _, output = name.partition("/")
        expected, in_reference, executed = (
            np.concatenate([np.ravel(each[name]) for each in runs])
            for runs in (references, simulated, real)
        )
        lost, agreement = (
            masked_sqnr_db(expected, in_reference),
            masked_sqnr_db(in_reference, executed),
        )
        least = min(lost - WORST_LOSS_DB, EXACT_DB)
        if not agreement >= least:
            problem = BuildError(
                f"the {title} {graph} is {agreement:.1f} dB from its Q/DQ graph at {output}, "
                f"which is {lost:.1f} dB from FP32: {least:.1f} is the least",
                where=str(engine / f"{graph}.onnx"),
                do="quantize again with --exclude for the sites that lose most (`arvg-trt "
                "validate` lists them)",
            )
            problems.setdefault(graph, problem)
    return problems
