"""Open sessions: the reference session for accuracy, the fast one for speed.

The default optimizations compute wrong results for symmetric INT8 graphs of several shapes
(microsoft/onnxruntime#27845), so figures of accuracy come from a session without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...extras import require_packages
from .onnxruntime import FUSES_PAIRS, OnnxRuntimeSession
from .placement import ON_CPU, Placement
from .session import Session

# On QLinearConv graphs, moving to NHWC costs more in transposes and in DequantizeLinear per
# channel than the convolutions gain (158 against 171 ms for the DI8x8 encoder at 256x256).
SLOW_OPTIMIZERS = ("NhwcTransformer",)
INTEGER_CONVOLUTION = b"QLinearConv"
# Products of an engine that multiply integers; in other graphs Q/DQ pairs are still to be fused.
INTEGER_PRODUCTS = (INTEGER_CONVOLUTION, b"MatMulInteger")
ROUNDS, WIDENS, IN_BLOCKS = b"QuantizeLinear", b"DequantizeLinear", b"block_size"
# What an engine's graph says of itself if its INT4 weights are expanded when it is opened.
EXPANDED = "arvg_trt.weights_expanded_at_load"


def open_session(
    path: Path,
    *,
    optimized: bool,
    threads: int = 0,
    lean: bool = False,
    mapped: bool = False,
    graph: bytes | None = None,
    disabled: Sequence[str] = (),
    fused: bool = True,
    placement: Placement = ON_CPU,
) -> Session:
    """Open a graph with chosen optimizations, on the CPU or where `placement` says.

    `lean` frees each tensor as soon as nothing needs it, at little cost of speed: into the
    session's arena or, where `mapped`, to the system. `mapped` leaves the weights in their file,
    shared by all sessions and processes that map it; without, each session makes its own copy in
    the layout that its products are fastest with.
    `graph` holds the graph's bytes when it is a changed copy of the one at `path`, whose folder
    then has its weights. Where not `fused`, optimizations leave Q/DQ pairs as they are, so that
    the products between them are computed in float, as the graph says.

    Raises:
        BundleError: the graph does not load, or parts of it would run elsewhere than asked.
        OutOfMemory: it does not fit.
    """
    return OnnxRuntimeSession(
        path,
        optimized=optimized,
        threads=threads,
        lean=lean,
        mapped=mapped,
        graph=graph,
        disabled=disabled,
        fused=fused,
        placement=placement,
    )


def reference_session(path: Path, threads: int = 0) -> Session:
    """Open a graph that runs every node as written, for figures of accuracy."""
    return open_session(path, optimized=False, threads=threads)


def fast_session(path: Path, threads: int = 0, placement: Placement = ON_CPU) -> Session:
    """Open a graph with all optimizations but the slow ones: FP32 graphs and checked engines.

    Weights that alone have 8 or 4 bits become floats once, as `expands_weights` says.
    """
    graph = graph_of(path)
    return open_session(
        path,
        optimized=True,
        threads=threads,
        disabled=disabled_in(graph),
        fused=not expands_weights(graph),
        placement=placement,
    )


def engine_session(path: Path, threads: int = 0, *, placement: Placement) -> Session:
    """Open an engine by the EPContext model beside the graph `path` that it was built from.

    Nothing is optimized: there is one node, and the engine is finished.
    """
    return open_session(context_path(path), optimized=False, threads=threads, placement=placement)


def openvino_session(path: Path, threads: int = 0) -> Session:
    """Open a graph with OpenVINO, by the blob beside it where that fits this machine.

    Raises:
        ArvgError: OpenVINO is not installed.
        BundleError: the graph does not load.
        OutOfMemory: it does not fit.
    """
    require_packages("openvino")
    from .openvino import OpenVinoSession

    return OpenVinoSession(path, threads)


def context_path(graph: Path) -> Path:
    """Return the EPContext model of a graph: step_ctx.onnx for step.onnx, as providers name it."""
    return graph.with_name(f"{graph.stem}_ctx.onnx")


def has_graph(path: Path) -> bool:
    """Return whether a graph is there, or the EPContext model of the engine built from it."""
    return path.is_file() or context_path(path).is_file()


def disabled_for(path: Path) -> tuple[str, ...]:
    """Return the optimizers that slow a graph down, or break one with integer convolutions.

    Those have all their products in integer operators: there is nothing left to fuse.
    """
    return disabled_in(graph_of(path))


def graph_of(path: Path) -> bytes:
    """Return the bytes of a graph, none where there is no file: opening it says so."""
    return path.read_bytes() if path.is_file() else b""


def expands_weights(graph: bytes) -> bool:
    """Return whether the weights of products in float are expanded once, when a graph is opened.

    ONNX Runtime 1.31 makes MatMulNBits of them, which for 8 bits expands them in each run: 2.6 ms
    instead of 0.2 for one row of 1024x1024. Without fusing, their DequantizeLinear is a constant,
    as in FP32, and so are time and memory. INT4 in blocks takes longer from two rows on, and an
    eighth of the memory: an engine's build decides it. Q/DQ graphs whose inputs are rounded stay
    as they are.
    """
    if WIDENS not in graph:
        return False
    if ROUNDS in graph and not any(name in graph for name in INTEGER_PRODUCTS):
        return False
    return IN_BLOCKS not in graph or EXPANDED.encode() in graph


def disabled_in(graph: bytes) -> tuple[str, ...]:
    """Return what `disabled_for` does, of the bytes of a graph."""
    if INTEGER_CONVOLUTION in graph:
        return (*SLOW_OPTIMIZERS, FUSES_PAIRS)
    return SLOW_OPTIMIZERS


def mapped_session(path: Path, threads: int = 0, placement: Placement = ON_CPU) -> Session:
    """Open a graph whose weights stay in their file, shared by several graphs.

    VAR d16's step of 256 tokens takes 1.18 times as long as with `fast_session`, and 0.2 instead of
    1.1 GB of memory beside the mapped file.
    """
    return open_session(
        path,
        optimized=True,
        threads=threads,
        lean=True,
        mapped=True,
        disabled=disabled_for(path),
        placement=placement,
    )
