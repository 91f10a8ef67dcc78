"""Build the ONNX Runtime engine: rewrite graphs, and check them against their Q/DQ graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from ...errors import BuildError, CalibrationError
from ...graph.group_norm import ExpandGroupNormsPass
from ...graph.io import read_graph
from ...graph.passes import Sequential
from ...runtime.sessions.open import reference_session
from ...samples.files import TOKENIZER_GRAPHS, Arrays, GraphChain, load_sample, sample_files
from ...workspace.files import open_tensors
from ..facts import EXECUTED, EngineRow, SiteException
from .check import CHECK_SAMPLES, Difference, Expected, differences
from .float_outputs import worst_first
from .integers import Ranges
from .matmul_integer import MatMulIntegerPass, match_input
from .qlinear_conv import QLinearConvPass
from .weights import mark_expanded

FEW = 8  # one of so many sites may be left in float to come near: each costs some speed
REWRITING = "rewriting for ONNX Runtime"
CHECKING = "checking the engine"

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

    Where an engine is clearly further from FP32 than its Q/DQ graph, the sites whose rounded
    outputs lose most compute in float: one, two, four and so on, until it is near. If a few of
    them do not suffice, all stay rounded, unless the engine would be refused. The row lists those
    in float.

    Raises:
        BuildError: the engine is too far from its Q/DQ graph, also without rounded outputs.
    """
    rows = {}
    ranges = output_ranges(statistics)
    for k, graph in enumerate(graphs):
        progress(REWRITING, k, len(graphs) + 1)
        rows[graph] = write_graph(source, graph, output, ranges)
    progress(CHECKING, len(graphs), len(graphs) + 1)
    files = sample_files(samples)[:CHECK_SAMPLES]

    expected = Expected.of(source, export, files, graphs)

    def differences_of(graph: str) -> list[Difference]:
        return [each for each in differences(expected, output) if each.graph == graph]

    found = differences(expected, output)
    for graph in dict.fromkeys(each.graph for each in found if not each.is_near):
        feeds = graph_feeds(export, files, graphs, graph)
        rounded = rounded_sites(output / f"{graph}.onnx")
        order = worst_first(source / f"{graph}.onnx", rounded, ranges, feeds)
        write = partial(write_graph, source, graph, output, ranges)
        rows[graph] = come_near(order, write, partial(differences_of, graph), output)
    progress(CHECKING, len(graphs) + 1, len(graphs) + 1)
    return [rows[graph] for graph in graphs]


def come_near(
    order: Sequence[str],
    write: Callable[[Collection[str]], EngineRow],
    differences_of: Callable[[], Sequence[Difference]],
    engine: Path,
) -> EngineRow:
    """Write a graph with few of the sites `order` in float if that brings it near, else with none.

    `differences_of` measures what was written last.

    Raises:
        BuildError: the graph is refused, whatever computes in float.
    """

    def refused() -> BuildError | None:
        return next((d.problem(engine) for d in differences_of() if not d.is_held), None)

    for count in doubled(-(-len(order) // FEW)):
        row = write(order[:count])
        if all(each.is_near for each in differences_of()):
            return row
    row = write(())
    problem = refused()
    return row if problem is None else leave_in_float(order, problem, write, refused)


def doubled(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and `most` itself; nothing of 0."""
    count = 0
    while count < most:
        count = min(2 * count or 1, most)
        yield count


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
    for count in doubled(len(order)):
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
