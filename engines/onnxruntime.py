"""The ONNX Runtime engine: rewritten graphs, checked against FP32 on calibration samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import safe_open

from ..errors import BuildError
from ..runtime.feeds import TOKENIZER_GRAPHS, GraphChain, load_sample, sample_files
from ..runtime.sessions.onnxruntime import reference_session
from .group_norm_form import expand_group_norms
from .integer_forms import Ranges, rewrite_convolutions
from .integer_linear import match_input, rewrite_linears

# A wrong rewrite is off by half the signal; the rounding of outputs costs a few dB.
WORST_LOSS_DB = 8.0
CHECK_SAMPLES = 2
REWRITING = "rewriting for ONNX Runtime"
CHECKING = "checking the engine"

Progress = Callable[[str, int, int], None]


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine graph, as reports list it."""

    backend: str
    target: str
    precision: str
    graph: str
    bytes: int
    build_seconds: float
    int8_sites_planned: int
    int8_sites_proved: int | None
    exceptions: tuple[dict[str, str], ...] = ()
    status: str = "executed"


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

    Raises:
        BuildError: the engine is further from FP32 than the rounding of outputs explains.
    """
    rows = []
    ranges = output_ranges(statistics)
    for k, graph in enumerate(graphs):
        progress(REWRITING, k, len(graphs) + 1)
        start = time.perf_counter()
        model = ir.load(source / f"{graph}.onnx")
        found = rewrite_graph(model, ranges)
        path = output / f"{graph}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")))
        rows.append(engine_row(graph, found, size, time.perf_counter() - start))
    progress(CHECKING, len(graphs), len(graphs) + 1)
    check_engine(source, export, output, sample_files(samples)[:CHECK_SAMPLES], graphs)
    progress(CHECKING, len(graphs) + 1, len(graphs) + 1)
    return rows


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Names of the products with quantized inputs, and of those that compute in integers now.

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
    """Every form that is fast on a CPU, in place; `ranges` are those of convolutions' outputs."""
    products = [n for n in model.graph if n.op_type in ("Conv", "MatMul")]
    planned = [str(node.name) for node in products if match_input(node)]
    done = rewrite_convolutions(model, ranges) + rewrite_linears(model)
    expand_group_norms(model.graph)
    held = [n.inputs[0] for n in model.graph if n.op_type == "DequantizeLinear"]
    bits = {int(v.const_value.dtype.bitwidth) for v in held if v is not None and v.const_value}
    return Rewritten(tuple(planned), tuple(done), tuple(sorted(bits)))


def engine_row(graph: str, found: Rewritten, size: int, seconds: float) -> EngineRow:
    return EngineRow(
        backend="onnxruntime",
        target="cpu",
        precision=found.precision,
        graph=graph,
        bytes=size,
        build_seconds=seconds,
        int8_sites_planned=len(found.planned),
        int8_sites_proved=len(found.done),
        exceptions=tuple(
            {"site": name, "reason": "its chain has no INT8 form"}
            for name in found.planned
            if name not in found.done
        ),
    )


def output_ranges(statistics: Path) -> Ranges:
    """(low, high) per output channel of each site, from calibration."""
    suffix = ":output:low"
    with safe_open(statistics, framework="numpy") as file:
        names = [key.removesuffix(suffix) for key in list(file.keys()) if key.endswith(suffix)]
        return {
            name: (file.get_tensor(f"{name}{suffix}"), file.get_tensor(f"{name}:output:high"))
            for name in names
        }


def check_engine(
    source: Path,
    export: Path,
    engine: Path,
    samples: Sequence[Path],
    graphs: Sequence[str] = TOKENIZER_GRAPHS,
) -> None:
    """Compare the engine as executed and the Q/DQ graphs with FP32, graph by graph."""
    arrays = [load_sample(path) for path in samples]
    fp32 = GraphChain.open(export, graphs, session=reference_session)
    references = [fp32.run(feeds) for feeds in arrays]
    del fp32
    simulated, real = (
        [chain.run(feeds, given=made) for feeds, made in zip(arrays, references, strict=True)]
        for chain in (
            GraphChain.open(source, graphs, session=reference_session),
            GraphChain.open(engine, graphs),
        )
    )
    for name in [n for n, v in references[0].items() if np.issubdtype(v.dtype, np.floating)]:
        graph, _, output = name.partition("/")
        expected, in_reference, executed = (
            np.concatenate([np.ravel(each[name]) for each in runs])
            for runs in (references, simulated, real)
        )
        wanted, found = sqnr_db(expected, in_reference), sqnr_db(expected, executed)
        if not found >= min(wanted, 40.0) - WORST_LOSS_DB:
            raise BuildError(
                f"the ONNX Runtime {graph} is {found:.1f} dB from FP32 at {output}, "
                f"its Q/DQ graph {wanted:.1f}",
                where=str(engine / f"{graph}.onnx"),
                do="report it with the output of `arvg-trt doctor`",
            )


def sqnr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Signal to noise where the reference is finite; NaN where the value is another elsewhere."""
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], value[~finite], equal_nan=True):
        return math.nan
    wide = reference[finite].astype(np.float64)
    noise, signal = float(np.square(wide - value[finite]).sum()), float(np.square(wide).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
